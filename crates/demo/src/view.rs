//! What the demo shows: a few lines redrawn in place on a terminal, else one line every two
//! seconds.
//!
//! Owns standard output while the demo runs. Promises not to scroll, to fit the terminal, and to
//! leave it as it was. The text depends on a [`Snapshot`] alone. Called by [`crate::demo`].

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use console::{Style, Term, style, truncate_str};

use status_indexer::status::Status;

use crate::logs::{is_terminal, panel};
use crate::watch::{PENDING, Snapshot};

/// The time between two frames.
pub(crate) const FRAME: Duration = Duration::from_millis(500);

/// The time between two lines without a terminal.
const LINE: Duration = Duration::from_secs(2);

/// How many lines of the log are shown.
const LOG_LINES: usize = 6;

/// The progress of the demo, for the first line.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    pub(crate) seed: u64,
    pub(crate) version: String,
    pub(crate) started: Instant,
    pub(crate) duration: Option<Duration>,
    pub(crate) stopping: bool,
}

/// Standard output.
pub(crate) enum View {
    Live { term: Term, drawn: usize },
    Plain { due: Instant },
}

impl View {
    pub(crate) fn new() -> Self {
        if is_terminal() {
            panel().open(true);
            Self::Live {
                term: Term::stdout(),
                drawn: 0,
            }
        } else {
            Self::Plain {
                due: Instant::now() + LINE,
            }
        }
    }

    /// Shows one snapshot.
    pub(crate) fn show(&mut self, progress: &Progress, snapshot: &Snapshot) -> io::Result<()> {
        match self {
            Self::Live { term, drawn } => draw(term, drawn, &frame(progress, snapshot)),
            Self::Plain { due } => {
                if Instant::now() < *due {
                    return Ok(());
                }
                *due += LINE;
                print(&line(progress, snapshot))
            }
        }
    }

    /// Keeps the last frame on the screen; what follows is written below it.
    pub(crate) fn close(&mut self) {
        *self = Self::Plain {
            due: Instant::now() + LINE,
        };
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // Only a live view has taken over the log.
        if matches!(self, Self::Live { .. }) {
            panel().open(false);
        }
    }
}

/// Prints to standard output; an error, rather than a panic, where the reader is gone.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

/// Replaces the lines of the last frame, in one write so that nothing flickers.
fn draw(term: &Term, drawn: &mut usize, lines: &[String]) -> io::Result<()> {
    let (height, width) = term.size();
    let fitting = usize::from(height).saturating_sub(1).max(1);
    let mut text = String::from("\r");
    if *drawn > 0 {
        let _ = write!(text, "\x1b[{drawn}A");
    }
    for line in lines.iter().take(fitting) {
        let _ = write!(
            text,
            "{}\x1b[K\r\n",
            truncate_str(line, usize::from(width), "…")
        );
    }
    text.push_str("\x1b[J");
    *drawn = lines.len().min(fitting);
    term.write_str(&text)
}

fn frame(progress: &Progress, snapshot: &Snapshot) -> Vec<String> {
    let label = |name: &str| style(format!("{name:<11}")).dim().to_string();
    let counts = Status::ALL
        .iter()
        .zip(snapshot.counts)
        .map(|(status, count)| {
            let colour = match status {
                Status::Running => Style::new().cyan(),
                Status::Completed => Style::new().green(),
                Status::Failed => Style::new().red(),
            };
            format!("{} {status}", colour.apply_to(format!("{count:>6}")))
        });
    let mut lines = vec![
        title(progress),
        format!(
            "{}{}",
            label("runs"),
            counts.collect::<Vec<_>>().join("    ")
        ),
        format!(
            "{}{:>6.0} writes/s     {:>6.1} runs/s       {:>6.1} heartbeats/s",
            label("clients"),
            snapshot.writes_per_sec,
            snapshot.runs_per_sec,
            snapshot.heartbeats_per_sec
        ),
        format!(
            "{}{:>6.1} events/s     {:>6.1} statuses/s   {:>6} waiting",
            label("indexer"),
            snapshot.events_per_sec,
            snapshot.transitions_per_sec,
            snapshot.waiting
        ),
        format!(
            "{}{:>9} p50     {:>9} p99       evidence written → status committed",
            label("event lag"),
            millis(snapshot.event_lag.quantile(0.5)),
            millis(snapshot.event_lag.quantile(0.99))
        ),
        format!(
            "{}{:>9} p50     {:>9} p99       deadline passed → status committed",
            label("sweep lag"),
            millis(snapshot.sweep_lag.quantile(0.5)),
            millis(snapshot.sweep_lag.quantile(0.99))
        ),
        format!("{}{}", label("definition"), comparison(snapshot)),
        String::new(),
    ];
    let log = panel().last(LOG_LINES);
    lines.extend(log.iter().map(|line| style(line).dim().to_string()));
    lines.extend(vec![String::new(); LOG_LINES - log.len()]);
    lines
}

fn title(progress: &Progress) -> String {
    let phase = if progress.stopping {
        "the clients have stopped; waiting for the last deadlines".to_owned()
    } else {
        let elapsed = progress.started.elapsed().as_secs();
        match progress.duration {
            Some(duration) => format!("{elapsed} of {} s", duration.as_secs()),
            None => format!("{elapsed} s; Ctrl-C ends it"),
        }
    };
    format!(
        "{}  {phase}  {}",
        style("status-indexer demo").bold(),
        style(format!(
            "PostgreSQL {}, seed {}",
            progress.version, progress.seed
        ))
        .dim()
    )
}

fn comparison(snapshot: &Snapshot) -> String {
    let Some(comparison) = &snapshot.comparison else {
        return "not compared yet: the backfill is not complete".to_owned();
    };
    let drift = format!("{:>6} drift", comparison.drift.len());
    let colour = if comparison.drift.is_empty() {
        Style::new().green().bold()
    } else {
        Style::new().red().bold()
    };
    format!(
        "{}      {:>7} pending      of {} compared",
        colour.apply_to(drift),
        comparison.pending,
        comparison.compared
    )
}

fn line(progress: &Progress, snapshot: &Snapshot) -> String {
    let [running, completed, failed] = snapshot.counts;
    let comparison = match &snapshot.comparison {
        Some(comparison) => format!(
            "pending {}  drift {}",
            comparison.pending,
            comparison.drift.len()
        ),
        None => "backfill".to_owned(),
    };
    format!(
        "{:>4} s  running {running}  completed {completed}  failed {failed}  events/s {:.1}  \
         statuses/s {:.1}  event lag p50 {} p99 {}  sweep lag p99 {}  {comparison}",
        progress.started.elapsed().as_secs(),
        snapshot.events_per_sec,
        snapshot.transitions_per_sec,
        millis(snapshot.event_lag.quantile(0.5)),
        millis(snapshot.event_lag.quantile(0.99)),
        millis(snapshot.sweep_lag.quantile(0.99)),
    )
}

/// A lag as text; a dash if there is none.
pub(crate) fn millis(lag: Option<Duration>) -> String {
    lag.map_or_else(
        || "–".to_owned(),
        |lag| format!("{:.1} ms", lag.as_secs_f64() * 1000.0),
    )
}

/// The meaning of *pending* and *drift*.
pub(crate) fn legend() -> String {
    format!(
        "A row that differs from the definition is pending while its event is in the queue, or for\n{} s \
         after its deadline; otherwise it is drift.",
        PENDING.as_secs()
    )
}
