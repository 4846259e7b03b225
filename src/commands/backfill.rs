//! `backfill`: the backfill at full speed, with progress; it can be stopped and resumed.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use super::{ConnectionArgs, WaitArgs};
use crate::exit::{Exit, Failure};
use crate::metrics::Metrics;
use crate::migrate;
use crate::output::print;
use crate::pg::{Connector, SessionProfile, detect_mode};
use crate::scan::{BATCH, Backfill, MAX_WRITES_WITH_UPSTREAM_NOTIFY, Outcome, Pace, Progress};
use crate::signals::Signals;
use crate::status::Status;
use crate::store::{State, Store};

/// How often progress is logged if the output is not a terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// `backfill`
#[derive(Debug, clap::Args)]
pub struct BackfillArgs {
    #[command(flatten)]
    speed: SpeedArgs,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// How fast to go.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Speed")]
struct SpeedArgs {
    /// Statements at the same time; with one, at most one core of the server is used
    #[arg(long, env = "STATUS_INDEXER_BACKFILL_CONCURRENCY", default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u8).range(1..=32))]
    concurrency: u8,
    /// Runs compared by one statement; with --max-rate, at most the runs of one second
    #[arg(long, env = "STATUS_INDEXER_BACKFILL_BATCH_SIZE", default_value_t = 8_000, value_name = "RUNS",
          value_parser = clap::value_parser!(i32).range(100..=50_000))]
    batch_size: i32,
    /// Maximum runs compared per second [default: no limit]
    #[arg(long, env = "STATUS_INDEXER_BACKFILL_MAX_RATE", value_name = "RUNS",
          value_parser = clap::value_parser!(u32).range(1..))]
    max_rate: Option<u32>,
}

impl SpeedArgs {
    /// Runs compared by one statement: small enough that no burst is followed by a long pause, where
    /// the rate is limited or upstream's triggers notify.
    fn batch_size(&self, upstream_notify_triggers: bool) -> i32 {
        let at_rate = self.max_rate.and_then(|rate| i32::try_from(rate).ok());
        let limits = [at_rate, upstream_notify_triggers.then_some(BATCH)];
        limits.into_iter().flatten().fold(self.batch_size, i32::min)
    }

    fn pace(&self, upstream_notify_triggers: bool) -> Pace {
        Pace {
            concurrency: self.concurrency.into(),
            max_rate: self.max_rate.map(f64::from),
            max_writes: upstream_notify_triggers.then_some(MAX_WRITES_WITH_UPSTREAM_NOTIFY),
            ..Pace::default()
        }
    }
}

/// Makes the column valid. The exit code is 1 if it was stopped before.
///
/// # Errors
/// If the database cannot be reached, or a call fails; run it again to resume.
pub async fn backfill(args: BackfillArgs, stop: &CancellationToken) -> Result<Exit, Failure> {
    let connector = args.connection.connector()?;
    if !args.wait.for_connection(&connector, stop).await? {
        return Ok(Exit::Failure);
    }
    let complete = complete(&connector, &args.speed, stop).await?;
    Ok(if complete {
        Exit::Success
    } else {
        Exit::Failure
    })
}

async fn complete(
    connector: &Connector,
    speed: &SpeedArgs,
    stop: &CancellationToken,
) -> anyhow::Result<bool> {
    let mode = detect_mode(connector).await?;
    let store = Store::for_backfill(connector, mode, usize::from(speed.concurrency) + 2);
    loop {
        let state = store.load_state().await.context(
            "cannot read the indexer's state; check the installation with `status-indexer migrate status`",
        )?;
        if state.valid {
            print("nothing to do: the column is valid; `status-indexer verify` proves it")?;
            return Ok(true);
        }
        if let Some(obstacles) = state.obstacles() {
            store.restart_backfill(state.generation).await?;
            bail!("the column cannot become valid: {obstacles}");
        }
        if let Some(complete) = attempt(connector, &store, &state, speed, stop).await? {
            return Ok(complete);
        }
        tracing::info!("the column or its parameters changed; starting again");
    }
}

/// One backfill; none if it must begin again.
async fn attempt(
    connector: &Connector,
    store: &Store,
    state: &State,
    speed: &SpeedArgs,
    stop: &CancellationToken,
) -> anyhow::Result<Option<bool>> {
    let client = connector
        .connect(SessionProfile::ReadOnlyTransaction)
        .await?;
    let notify_triggers = migrate::upstream_notify_triggers(&client, &state.runs_table).await?;
    if notify_triggers {
        tracing::warn!(
            "upstream's notify_ui trigger sends a notification for each status written; writing at \
             most {MAX_WRITES_WITH_UPSTREAM_NOTIFY} a second"
        );
    }
    let total = estimate(&client, &state.runs_table).await?;
    drop(client);
    let (signals, metrics) = (Signals::default(), Metrics::new());
    let backfill = Backfill {
        store,
        batch_size: speed.batch_size(notify_triggers),
        pace: speed.pace(notify_triggers),
        signals: &signals,
        metrics: &metrics,
    };
    let mut report = Report::new(total, state.scan_compared);
    let outcome = backfill
        .run(state, stop, |progress| report.update(progress))
        .await?;
    report.bar.finish_and_clear();
    let (end, complete) = match outcome {
        Outcome::Complete => ("the column is valid", true),
        Outcome::Overtaken => (
            "the column is valid; another backfill completed first",
            true,
        ),
        Outcome::Stopped => ("stopped; run it again to resume", false),
        Outcome::Outdated => return Ok(None),
    };
    print(&report.summary(end))?;
    Ok(Some(complete))
}

/// The planner's estimate of the number of runs: counting a million takes too long.
async fn estimate(client: &tokio_postgres::Client, runs_table: &str) -> anyhow::Result<u64> {
    let row = client
        .query_typed_one(
            "-- backfill.estimate
select greatest(reltuples, 0)::int8 from pg_class where oid = to_regclass($1)",
            &[(&runs_table, Type::TEXT)],
        )
        .await?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

struct Report {
    bar: ProgressBar,
    started: Instant,
    logged: Instant,
    last: Progress,
    total: u64,
}

impl Report {
    fn new(total: u64, done: i64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal {
            ProgressDrawTarget::stderr_with_hz(4)
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template(
            "{bar:40} {percent:>3} %  {pos} runs, {per_sec}, {eta} left  {msg}",
        )
        .expect("the template is a literal of the right form");
        let bar = ProgressBar::with_draw_target(Some(total), target).with_style(style);
        bar.set_position(u64::try_from(done).unwrap_or(0));
        bar.reset_eta();
        Self {
            bar,
            started: Instant::now(),
            logged: Instant::now(),
            last: Progress::default(),
            total,
        }
    }

    fn update(&mut self, progress: &Progress) {
        let compared = u64::try_from(progress.compared).unwrap_or(0);
        self.bar.set_length(self.total.max(compared));
        self.bar.set_position(compared);
        self.bar
            .set_message(format!("{} corrected", progress.corrected));
        self.last = progress.clone();
        if self.bar.is_hidden() && self.logged.elapsed() >= LOG_INTERVAL {
            self.logged = Instant::now();
            tracing::info!(
                compared = progress.compared,
                corrected = progress.corrected,
                of_about = self.total,
                seconds_left = self.bar.eta().as_secs(),
                "backfill"
            );
        }
    }

    fn summary(&self, end: &str) -> String {
        let written: Vec<String> = Status::ALL
            .iter()
            .map(|status| {
                let count = self.last.written.get(status).copied().unwrap_or(0);
                format!("{count} {status}")
            })
            .collect();
        format!(
            "compared {} runs, wrote {} ({}) in {:.1} s; {end}",
            self.last.compared,
            self.last.written.values().sum::<i64>(),
            written.join(", "),
            self.started.elapsed().as_secs_f64(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_limits_the_batch_size() {
        let speed = |max_rate| SpeedArgs {
            concurrency: 1,
            batch_size: 8_000,
            max_rate,
        };
        assert_eq!(speed(None).batch_size(false), 8_000);
        assert_eq!(speed(None).batch_size(true), BATCH);
        assert_eq!(speed(Some(500)).batch_size(true), 500);
        assert_eq!(speed(Some(u32::MAX)).batch_size(false), 8_000);
    }
}
