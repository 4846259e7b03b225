//! `verify`: compares every stored status with the definition, and changes nothing. Works on a
//! standby too.
//!
//! A run has drifted if, in one snapshot, it differs, has no event in the queue and is not close to a
//! deadline. On a standby the clock is ahead of what has been replayed, so a difference that time
//! alone explains may be about to be replayed.

use anyhow::bail;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::ConnectionArgs;
use crate::error::Error;
use crate::exit::{Exit, Failure};
use crate::metrics::Metrics;
use crate::output::print;
use crate::pg::Db;
use crate::scan::{Batches, End, Handler, Scan};
use crate::status::RunKey;
use crate::store::{
    Compared, DEADLINE_SLACK, Detail, Difference, Explained, ObstacleKind, RefusedRun, Store,
};

/// Batches compared at the same time.
const CONCURRENCY: usize = 2;

/// Runs with drift that are listed as text; the others are counted.
const MAX_LISTED: u64 = 100;

/// `verify`
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// Compare only the runs of this flow
    #[arg(long, value_name = "FLOW")]
    flow: Option<String>,
    /// Print JSON: one object for each run with drift, then one with the counts
    #[arg(long)]
    json: bool,
    /// Runs compared by one statement
    #[arg(long, env = "STATUS_INDEXER_VERIFY_BATCH_SIZE", default_value_t = 5_000, value_name = "RUNS",
          value_parser = clap::value_parser!(i32).range(100..=50_000))]
    batch_size: i32,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Summary {
    /// Runs compared.
    compared: u64,
    /// Runs with drift.
    drift: u64,
    /// Runs that differ because an event or a deadline is pending.
    pending: u64,
    /// Runs of a standby that differ by what may not have been replayed.
    unknown: u64,
    /// Whether the column is valid.
    valid: bool,
    /// Whether all runs were compared.
    finished: bool,
}

impl Summary {
    fn exit(&self) -> Exit {
        if !self.finished || (!self.valid && self.drift > 0) {
            Exit::Unknown
        } else if self.drift > 0 {
            Exit::Failure
        } else if self.unknown > 0 {
            Exit::Unknown
        } else {
            Exit::Success
        }
    }

    fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            let counts = json!({
                "compared": self.compared,
                "drift": self.drift,
                "pending": self.pending,
                "unknown": self.unknown,
                "valid": self.valid,
                "finished": self.finished,
            });
            return print(&counts.to_string());
        }
        print(&format!(
            "{} runs compared: {} with drift, {} pending (an event is in the queue, or a deadline is \
             close), {} unknown",
            self.compared, self.drift, self.pending, self.unknown
        ))?;
        if !self.finished {
            print("stopped before the end")?;
        } else if !self.valid && self.drift > 0 {
            print(
                "the column is not valid: its backfill is not complete, so differences are expected",
            )?;
        }
        Ok(())
    }
}

/// Compares all runs, or those of one flow, and prints those with drift.
///
/// # Errors
/// If the database cannot be read.
pub async fn verify(args: VerifyArgs, stop: &CancellationToken) -> Result<Exit, Failure> {
    let connector = args.connection.connector()?;
    let store = Store::new(Db::for_reads(&connector, CONCURRENCY + 1, Metrics::new()));
    match summarize(&args, &store, stop).await {
        Ok(summary) => Ok(summary.exit()),
        Err(error) => Err(Failure::Unknown(error)),
    }
}

async fn summarize(
    args: &VerifyArgs,
    store: &Store,
    stop: &CancellationToken,
) -> anyhow::Result<Summary> {
    let state = store.load_state().await?;
    args.connection.check_cutoff(state.cutoff_secs);
    if let Some(hidden) = state
        .obstacles
        .iter()
        .find(|obstacle| obstacle.kind != ObstacleKind::TriggersMissing)
    {
        bail!("cannot compare every run: {}", hidden.detail);
    }
    let mut summary = Summary {
        valid: state.valid,
        ..Summary::default()
    };
    let start = args.flow.as_ref().map(|flow_id| RunKey {
        flow_id: flow_id.clone(),
        run_number: i64::MIN,
    });
    let batches =
        Batches::after(store, start, args.batch_size, Detail::Reasons).concurrently(CONCURRENCY);
    let mut counter = Counter {
        args,
        summary: &mut summary,
        // Cancelled at the last batch of the flow, where one is given.
        stop: stop.child_token(),
        passed_flow: false,
        failure: None,
    };
    let end = Scan::new(batches)
        .run(&counter.stop.clone(), &mut counter)
        .await?;
    if let Some(failure) = counter.failure {
        return Err(failure);
    }
    let passed_flow = counter.passed_flow;
    summary.finished = passed_flow || matches!(end, End::Complete { .. });
    summary.print(args.json)?;
    Ok(summary)
}

/// Counts the differences of each batch, and lists drift.
struct Counter<'a> {
    args: &'a VerifyArgs,
    summary: &'a mut Summary,
    stop: CancellationToken,
    passed_flow: bool,
    failure: Option<anyhow::Error>,
}

impl Handler for Counter<'_> {
    async fn handle(&mut self, batch: &Compared) -> Result<i64, Error> {
        let flow = self.args.flow.as_ref();
        self.passed_flow =
            matches!((flow, &batch.last), (Some(flow), Some(last)) if *flow != last.flow_id);
        self.failure = self.count(batch).err();
        if self.passed_flow || self.failure.is_some() {
            self.stop.cancel();
        }
        Ok(0)
    }
}

impl Counter<'_> {
    fn count(&mut self, batch: &Compared) -> anyhow::Result<()> {
        self.summary.compared += u64::try_from(batch.compared).unwrap_or(0);
        let flow = self.args.flow.as_ref();
        let of_flow = |key: &RunKey| flow.is_none_or(|flow| *flow == key.flow_id);
        for run in batch.refused.iter().filter(|run| of_flow(&run.key)) {
            self.summary.unknown += 1;
            list_refused(run, self.args.json, self.summary.unknown)?;
        }
        for run in batch.differences.iter().filter(|run| of_flow(&run.key)) {
            match run.classify(DEADLINE_SLACK) {
                Explained::PendingEvent | Explained::PassedDeadline => self.summary.pending += 1,
                _ if may_not_be_replayed(run, batch) => self.summary.unknown += 1,
                Explained::OverdueDeadline | Explained::Drift => {
                    self.summary.drift += 1;
                    list(run, self.args.json, self.summary.drift)?;
                }
            }
        }
        Ok(())
    }
}

/// On a standby: whether the deadline that explains the difference had not passed, or not long enough
/// for the sweeper, at the time up to which the standby has replayed.
fn may_not_be_replayed(run: &Difference, batch: &Compared) -> bool {
    let Some(replayed_secs) = batch.replayed_secs else {
        return false;
    };
    let since = run.deadline_distance.unwrap_or(0.0);
    run.is_of_time() && batch.at_secs - since > replayed_secs - DEADLINE_SLACK.as_secs_f64()
}

fn list(run: &Difference, json: bool, nth: u64) -> anyhow::Result<()> {
    if json {
        print(&json!(run).to_string())
    } else if nth <= MAX_LISTED {
        print(&format!(
            "{}: stored {}{}, expected {}{} ({}; attempt_ok {} at {}, attempt at {}, heartbeat {})",
            run.key,
            run.stored,
            ended(run.stored_finished_at),
            run.expected,
            ended(run.finished_at),
            run.reason,
            run.ok_value.as_deref().unwrap_or("none"),
            text(run.ok_ts),
            text(run.retry_ts),
            text(run.heartbeat),
        ))
    } else if nth == MAX_LISTED + 1 {
        print("further runs with drift are counted, not listed; --json lists all")
    } else {
        Ok(())
    }
}

fn list_refused(run: &RefusedRun, json: bool, nth: u64) -> anyhow::Result<()> {
    if json {
        print(&json!(run).to_string())
    } else if nth <= MAX_LISTED {
        print(&format!(
            "{}: the server cannot evaluate it: {} ({})",
            run.key, run.error, run.sqlstate
        ))
    } else {
        Ok(())
    }
}

/// When a run ended, where this is kept and known.
fn ended(at_ms: Option<i64>) -> String {
    at_ms.map_or_else(String::new, |at_ms| format!(" at {at_ms}"))
}

fn text(number: Option<i64>) -> String {
    number.map_or_else(|| "none".to_owned(), |number| number.to_string())
}
