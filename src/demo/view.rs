//! What a person sees of the demo: a few lines redrawn in place on a terminal, else one line every
//! two seconds.
//!
//! Owns standard output while the demo runs. Promises not to scroll, to fit the terminal, and to
//! leave it as it was. Text is made from a [`Sight`] alone.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use console::{Style, Term, style, truncate_str};

use super::logs::{draws, panel};
use super::watch::{IN_FLIGHT, Sight};
use crate::status::Status;

/// The time between two looks.
pub(super) const FRAME: Duration = Duration::from_millis(500);

/// The time between two lines where nothing can be redrawn.
const LINE: Duration = Duration::from_secs(2);

/// Lines of the log that are shown.
const LOG_LINES: usize = 6;

/// Where the demo is in its course, for the first line.
#[derive(Debug, Clone)]
pub(super) struct Course {
    pub(super) seed: u64,
    pub(super) version: String,
    pub(super) started: Instant,
    pub(super) duration: Option<Duration>,
    pub(super) stopping: bool,
}

/// Standard output.
pub(super) enum View {
    Live { term: Term, drawn: usize },
    Plain { due: Instant },
}

impl View {
    pub(super) fn new() -> Self {
        if draws() {
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

    /// Shows one moment.
    pub(super) fn show(&mut self, course: &Course, sight: &Sight) -> io::Result<()> {
        match self {
            Self::Live { term, drawn } => draw(term, drawn, &frame(course, sight)),
            Self::Plain { due } => {
                if Instant::now() < *due {
                    return Ok(());
                }
                *due += LINE;
                say(&line(course, sight))
            }
        }
    }

    /// Leaves the last frame standing; what follows is written below it.
    pub(super) fn close(&mut self) {
        *self = Self::Plain {
            due: Instant::now() + LINE,
        };
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // A view that never drew must not take the log from one that does.
        if matches!(self, Self::Live { .. }) {
            panel().open(false);
        }
    }
}

/// One line on standard output. An error, rather than a panic, where nobody reads it any more.
pub(super) fn say(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

/// Writes the lines over those of the last time, in one piece so that nothing flickers.
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

fn frame(course: &Course, sight: &Sight) -> Vec<String> {
    let label = |name: &str| style(format!("{name:<11}")).dim().to_string();
    let counts = Status::ALL.iter().zip(sight.counts).map(|(status, count)| {
        let colour = match status {
            Status::Running => Style::new().cyan(),
            Status::Completed => Style::new().green(),
            Status::Failed => Style::new().red(),
        };
        format!("{} {status}", colour.apply_to(format!("{count:>6}")))
    });
    let mut lines = vec![
        title(course),
        format!(
            "{}{}",
            label("runs"),
            counts.collect::<Vec<_>>().join("    ")
        ),
        format!(
            "{}{:>6.0} writes/s     {:>6.1} runs/s       {:>6.1} heartbeats/s",
            label("clients"),
            sight.writes_per_sec,
            sight.runs_per_sec,
            sight.heartbeats_per_sec
        ),
        format!(
            "{}{:>6.1} events/s     {:>6.1} statuses/s   {:>6} waiting",
            label("indexer"),
            sight.events_per_sec,
            sight.transitions_per_sec,
            sight.waiting
        ),
        format!(
            "{}{:>9} p50     {:>9} p99       evidence written → status committed",
            label("event lag"),
            millis(sight.event_lag.quantile(0.5)),
            millis(sight.event_lag.quantile(0.99))
        ),
        format!(
            "{}{:>9} p50     {:>9} p99       deadline passed → status committed",
            label("sweep lag"),
            millis(sight.sweep_lag.quantile(0.5)),
            millis(sight.sweep_lag.quantile(0.99))
        ),
        format!("{}{}", label("definition"), verdict(sight)),
        String::new(),
    ];
    let log = panel().last(LOG_LINES);
    lines.extend(log.iter().map(|line| style(line).dim().to_string()));
    lines.extend(vec![String::new(); LOG_LINES - log.len()]);
    lines
}

fn title(course: &Course) -> String {
    let phase = if course.stopping {
        "the clients have stopped; waiting for the last deadlines".to_owned()
    } else {
        let elapsed = course.started.elapsed().as_secs();
        match course.duration {
            Some(duration) => format!("{elapsed} of {} s", duration.as_secs()),
            None => format!("{elapsed} s; Ctrl-C ends it"),
        }
    };
    format!(
        "{}  {phase}  {}",
        style("status-indexer demo").bold(),
        style(format!(
            "PostgreSQL {}, seed {}",
            course.version, course.seed
        ))
        .dim()
    )
}

fn verdict(sight: &Sight) -> String {
    let Some(verdict) = &sight.verdict else {
        return "not compared yet: the first pass over all runs is not complete".to_owned();
    };
    let wrong = format!("{:>6} wrong", verdict.wrong.len());
    let colour = if verdict.wrong.is_empty() {
        Style::new().green().bold()
    } else {
        Style::new().red().bold()
    };
    format!(
        "{}      {:>7} in flight    of {} compared",
        colour.apply_to(wrong),
        verdict.in_flight,
        verdict.compared
    )
}

fn line(course: &Course, sight: &Sight) -> String {
    let [running, completed, failed] = sight.counts;
    let verdict = match &sight.verdict {
        Some(verdict) => format!(
            "in flight {}  wrong {}",
            verdict.in_flight,
            verdict.wrong.len()
        ),
        None => "first pass".to_owned(),
    };
    format!(
        "{:>4} s  running {running}  completed {completed}  failed {failed}  events/s {:.1}  \
         statuses/s {:.1}  event lag p50 {} p99 {}  sweep lag p99 {}  {verdict}",
        course.started.elapsed().as_secs(),
        sight.events_per_sec,
        sight.transitions_per_sec,
        millis(sight.event_lag.quantile(0.5)),
        millis(sight.event_lag.quantile(0.99)),
        millis(sight.sweep_lag.quantile(0.99)),
    )
}

/// A lag for people; a dash where there was nothing to measure.
pub(super) fn millis(lag: Option<Duration>) -> String {
    lag.map_or_else(
        || "–".to_owned(),
        |lag| format!("{:.1} ms", lag.as_secs_f64() * 1000.0),
    )
}

/// What `in flight` means, once for every reader.
pub(super) fn legend() -> String {
    format!(
        "A row that differs from the definition is in flight while its event waits in the queue, or \
         for\n{} s after its deadline; else it is wrong.",
        IN_FLIGHT.as_secs()
    )
}
