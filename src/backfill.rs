//! `backfill`: the first pass at full speed, as a command that can be stopped and resumed.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::migrate;
use crate::output::say;
use crate::pg::{Connector, Db, Purpose, detect_mode};
use crate::status::Status;
use crate::store::state;
use crate::walk::{FirstPass, Listeners, NOTIFYING_RATE, Outcome, Pace, Progress, STEP};

/// How often progress is told where there is no terminal.
const TELL: Duration = Duration::from_secs(5);

/// How fast to go.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Speed")]
pub struct Speed {
    /// Statements at the same time; with one, it takes one of the server's cores at the most
    #[arg(long, env = "STATUS_INDEXER_BACKFILL_CONCURRENCY", default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u8).range(1..=32))]
    pub concurrency: u8,
    /// Runs that are compared by one statement; with a rate, no more than a second's
    #[arg(long, env = "STATUS_INDEXER_BACKFILL_BATCH_SIZE", default_value_t = 8_000, value_name = "RUNS",
          value_parser = clap::value_parser!(i32).range(100..=50_000))]
    pub batch_size: i32,
    /// Runs compared in a second at most [default: no limit]
    #[arg(long, env = "STATUS_INDEXER_BACKFILL_MAX_RATE", value_name = "RUNS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_rate: Option<u32>,
}

impl Speed {
    /// Runs that one step compares. Where a rate is set or statuses are told by upstream's triggers, few
    /// enough that no burst is followed by a long rest.
    fn step(&self, notifying: bool) -> i32 {
        let at_rate = self.max_rate.and_then(|rate| i32::try_from(rate).ok());
        let limits = [at_rate, notifying.then_some(STEP)];
        limits.into_iter().flatten().fold(self.batch_size, i32::min)
    }
}

/// Makes the column believable. True where it is; false where it was stopped before.
///
/// # Errors
/// If the database cannot be reached, or a call fails; run it again to go on.
pub async fn backfill(
    connector: &Connector,
    speed: &Speed,
    stop: &CancellationToken,
) -> anyhow::Result<bool> {
    let db = Db::for_pass(
        connector,
        detect_mode(connector).await?,
        usize::from(speed.concurrency) + 2,
        Metrics::new(),
    );
    let metrics = Metrics::new();
    loop {
        let state = state::load(&db).await.context(
            "cannot read the indexer's state; is it installed? See `status-indexer migrate status`",
        )?;
        if state.believable {
            say("nothing to do: the column is believable; `status-indexer verify` proves it")?;
            return Ok(true);
        }
        if !state.listening {
            state::begin_anew(&db, state.generation).await?;
            bail!(
                "a trigger is missing or disabled, so that no pass can make the column believable: see `status-indexer migrate status`"
            );
        }
        let client = connector.connect(Purpose::Look).await?;
        let notifying = migrate::notifying_neighbour(&client, &state.runs_table).await?;
        if notifying {
            tracing::warn!(
                "upstream's notify_ui trigger sends a message for each status written; at most {NOTIFYING_RATE} are written a second"
            );
        }
        let pass = FirstPass {
            db: &db,
            pace: Pace {
                step: speed.step(notifying),
                concurrency: speed.concurrency.into(),
                max_rate: speed.max_rate.map(f64::from),
                max_writes: notifying.then_some(NOTIFYING_RATE),
                rest_parts: 0.0,
            },
            listeners: Listeners::default(),
            metrics: &metrics,
        };
        let total = estimate(&client, &state.runs_table).await?;
        drop(client);
        let mut report = Report::new(total, state.pass_compared);
        let outcome = pass
            .run(
                state,
                || !stop.is_cancelled(),
                |progress| report.tell(progress),
            )
            .await?;
        report.bar.finish_and_clear();
        match outcome {
            Outcome::Complete => say(&report.summary("the column is believable"))?,
            Outcome::ByAnother => {
                say(&report.summary("the column is believable; another pass came to the end first"))?
            }
            Outcome::Stopped => {
                say(&report.summary("stopped; run it again to go on from here"))?;
                return Ok(false);
            }
            Outcome::Outdated => {
                tracing::info!("the column or its parameters changed; beginning anew");
                continue;
            }
        }
        return Ok(true);
    }
}

/// How many runs there are, as the planner knows it: counting a million takes longer than telling.
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
    told: Instant,
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
            told: Instant::now(),
            last: Progress::default(),
            total,
        }
    }

    fn tell(&mut self, progress: &Progress) {
        let compared = u64::try_from(progress.compared).unwrap_or(0);
        self.bar.set_length(self.total.max(compared));
        self.bar.set_position(compared);
        self.bar
            .set_message(format!("{} corrected", progress.corrected));
        self.last = progress.clone();
        if self.bar.is_hidden() && self.told.elapsed() >= TELL {
            self.told = Instant::now();
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
    fn a_rate_spreads_the_steps() {
        let speed = |max_rate| Speed {
            concurrency: 1,
            batch_size: 8_000,
            max_rate,
        };
        assert_eq!(speed(None).step(false), 8_000);
        assert_eq!(speed(None).step(true), STEP);
        assert_eq!(speed(Some(500)).step(true), 500);
        assert_eq!(speed(Some(u32::MAX)).step(false), 8_000);
    }
}
