//! `verify`: compares every stored status with the definition, and changes nothing. Works on a
//! standby too.
//!
//! A run is drift when, in one snapshot, it differs, has no event in the queue and is not close to
//! a deadline. On a standby the clock runs ahead of what has been replayed, so a difference that
//! time alone explains cannot be told from one that is about to be replayed.

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::output::say;
use crate::pg::{Connector, Db};
use crate::status::RunKey;
use crate::store::runs::{Compared, DEADLINE_SLACK_SECS, Detail, Difference};
use crate::store::state;
use crate::walk::Steps;

/// Steps that are compared at the same time.
const AT_ONCE: usize = 2;

/// Wrong runs that are listed for people; the rest is counted.
const LISTED: u64 = 100;

/// What to verify, and how to say it.
#[derive(Debug, Clone)]
pub struct Options {
    /// One flow only.
    pub flow: Option<String>,
    /// Print JSON: one object a wrong run, then one with the counts.
    pub json: bool,
    /// Runs that are compared by one statement.
    pub batch_size: i32,
    /// The cutoff as configured, seconds; the stored one is used.
    pub cutoff_secs: i64,
}

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Runs compared.
    pub compared: u64,
    /// Runs that are wrong.
    pub drift: u64,
    /// Runs that differ, and that an event in the queue or a deadline close by explains.
    pub in_flight: u64,
    /// Runs that differ on a standby by what may not have been replayed.
    pub unknown: u64,
    /// Whether the first pass was complete.
    pub believable: bool,
    /// Whether all runs were looked at.
    pub finished: bool,
}

impl Verdict {
    /// 0 no drift, 1 drift, 2 could not tell.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if !self.finished || (!self.believable && self.drift > 0) {
            2
        } else if self.drift > 0 {
            1
        } else if self.unknown > 0 {
            2
        } else {
            0
        }
    }
}

/// Compares all runs, or those of one flow, and prints what is wrong.
///
/// # Errors
/// If the database cannot be read.
pub async fn verify(
    connector: &Connector,
    options: &Options,
    stop: &CancellationToken,
) -> anyhow::Result<Verdict> {
    let db = Db::for_reads(connector, AT_ONCE + 1, Metrics::new());
    let state = state::load(&db).await?;
    if state.cutoff_secs != options.cutoff_secs {
        tracing::warn!(
            configured = options.cutoff_secs,
            stored = state.cutoff_secs,
            "the cutoff in the database is used, not the configured one"
        );
    }
    let mut verdict = Verdict {
        believable: state.believable,
        ..Verdict::default()
    };
    let start = options.flow.as_ref().map(|flow_id| RunKey {
        flow_id: flow_id.clone(),
        run_number: i64::MIN,
    });
    let mut steps = Steps::after(&db, start, options.batch_size, Detail::Reasons, AT_ONCE);
    loop {
        let step = steps.next().await?;
        judge(&step, options, &mut verdict)?;
        let over = step.last.is_none()
            || matches!((&options.flow, &step.last), (Some(flow), Some(last)) if *flow != last.flow_id);
        if over || stop.is_cancelled() {
            verdict.finished = over;
            break;
        }
    }
    report(options, &verdict)?;
    Ok(verdict)
}

fn judge(step: &Compared, options: &Options, verdict: &mut Verdict) -> anyhow::Result<()> {
    verdict.compared += u64::try_from(step.compared).unwrap_or(0);
    let of_flow = |difference: &&Difference| {
        options
            .flow
            .as_ref()
            .is_none_or(|flow| *flow == difference.key.flow_id)
    };
    for difference in step.differences.iter().filter(of_flow) {
        if difference.is_in_flight() {
            verdict.in_flight += 1;
        } else if is_unreplayed(difference, step) {
            verdict.unknown += 1;
        } else {
            verdict.drift += 1;
            list(difference, options, verdict.drift)?;
        }
    }
    Ok(())
}

/// On a standby: whether the deadline that would explain the difference had passed, as far as has
/// been replayed, long enough for its sweep to have been replayed too.
fn is_unreplayed(difference: &Difference, step: &Compared) -> bool {
    let Some(replayed_secs) = step.replayed_secs else {
        return false;
    };
    let since = difference.deadline_distance.unwrap_or(0.0);
    difference.is_of_time() && step.at_secs - since > replayed_secs - DEADLINE_SLACK_SECS
}

fn list(difference: &Difference, options: &Options, nth: u64) -> anyhow::Result<()> {
    if options.json {
        say(&json!(difference).to_string())
    } else if nth <= LISTED {
        say(&format!(
            "{}: stored {}, should be {} ({}; attempt_ok {} at {}, attempt at {}, heartbeat {})",
            difference.key,
            difference.stored,
            difference.expected,
            difference.reason,
            difference.ok_value.as_deref().unwrap_or("none"),
            text(difference.ok_ts),
            text(difference.retry_ts),
            text(difference.heartbeat),
        ))
    } else if nth == LISTED + 1 {
        say("more are counted, not listed; --json lists all")
    } else {
        Ok(())
    }
}

fn text(number: Option<i64>) -> String {
    number.map_or_else(|| "none".to_owned(), |number| number.to_string())
}

fn report(options: &Options, verdict: &Verdict) -> anyhow::Result<()> {
    if options.json {
        let counts = json!({
            "compared": verdict.compared,
            "drift": verdict.drift,
            "in_flight": verdict.in_flight,
            "unknown": verdict.unknown,
            "believable": verdict.believable,
            "finished": verdict.finished,
        });
        return say(&counts.to_string());
    }
    say(&format!(
        "{} runs compared: {} wrong, {} in flight (an event waits, or a deadline is close), {} could not be told",
        verdict.compared, verdict.drift, verdict.in_flight, verdict.unknown
    ))?;
    if !verdict.finished {
        say("stopped before the end")?;
    } else if !verdict.believable && verdict.drift > 0 {
        say("the first pass is not complete, so differences are to be expected")?;
    }
    Ok(())
}
