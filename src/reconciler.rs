//! Walks all runs in key order and has those that differ from the definition judged anew.
//!
//! The first pass after an installation, or after a change of the cutoff, makes the column
//! believable: its position is durable, so that it goes on where it stopped, and it is fenced by
//! the state's generation, so that a pass that froze cannot bless a column made after it. It
//! compares without locks and yields to live events. Called by the daemon.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::error::{Error, chain};
use crate::metrics::Metrics;
use crate::pg::Db;
use crate::signals::{Alarm, LeadWatch, Wake};
use crate::status::RunKey;
use crate::store::apply::{BATCH, apply};
use crate::store::runs::{Compared, compare};
use crate::store::state::{self, State};
use crate::store::{queue, runs};

/// How many runs one step compares: some ten milliseconds of the server's time.
const STEP: i32 = 2_000;

/// A live pass rests as long as it worked: half of one core at the most.
const REST_PARTS: f64 = 1.0;

/// Statuses a second that a pass writes where each write sends one of upstream's notifications.
const NOTIFYING_RATE: f64 = 200.0;

/// How often the state is looked at while there is no pass to make.
const IDLE: Duration = Duration::from_secs(30);

/// How often the end of a pass looks whether the events before it have been applied.
const SETTLE: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub struct Reconciler {
    /// The way to the database.
    pub db: Db,
    /// Work only while leading.
    pub lead: LeadWatch,
    /// Called for runs that had to be put into the queue.
    pub wake: Wake,
    /// Told of deadlines, and that the cutoff changed.
    pub alarm: Alarm,
    /// The cutoff that this daemon was configured with, seconds; the leader's is in force.
    pub cutoff_secs: i64,
    /// Whether upstream's triggers send a message for each status written.
    pub notifying_neighbour: bool,
    /// What it counts.
    pub metrics: Metrics,
}

impl Reconciler {
    /// Runs until `stop`; errors are waited out.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            let Some(session) = stop.run_until_cancelled(self.lead.leading()).await else {
                return;
            };
            let wait = match self.turn(session, &stop).await {
                Ok(()) => {
                    backoff.reset();
                    IDLE
                }
                Err(error) => {
                    if backoff.is_fresh() {
                        tracing::warn!(
                            error = chain(&error),
                            "the pass over all runs was interrupted"
                        );
                    }
                    backoff.next_wait()
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = self.lead.changed() => {}
            }
        }
    }

    /// What a leader has to do: put its cutoff in force, and finish the first pass.
    async fn turn(&self, session: u64, stop: &CancellationToken) -> Result<(), Error> {
        if state::adopt_cutoff(&self.db, self.cutoff_secs).await? {
            tracing::info!(
                cutoff_secs = self.cutoff_secs,
                "another cutoff is in force; all runs are looked at again"
            );
            self.alarm.all();
        }
        let state = state::load(&self.db).await?;
        self.metrics.believable.set(state.believable.into());
        if state.believable {
            return Ok(());
        }
        let done = self.first_pass(state, session, stop).await?;
        self.metrics.believable.set(done.into());
        Ok(())
    }

    /// Compares all runs from the stored position on and blesses the column. False where it was
    /// stopped, the lead was lost, or the generation is over.
    async fn first_pass(
        &self,
        state: State,
        session: u64,
        stop: &CancellationToken,
    ) -> Result<bool, Error> {
        tracing::info!(
            resumed = state.pass_position.is_some(),
            compared = state.pass_compared,
            "first pass over all runs"
        );
        let started = Instant::now();
        let (mut compared, mut corrected) = (state.pass_compared, state.pass_corrected);
        let mut position = state.pass_position;
        let end_secs = loop {
            if stop.is_cancelled() || !self.lead.still(session) {
                return Ok(false);
            }
            let start = Instant::now();
            let step = compare(&self.db, position.as_ref(), STEP).await?;
            let written = self.correct(&step).await?;
            compared += step.compared;
            corrected += written;
            let Some(last) = step.last else {
                break step.at_secs;
            };
            if !state::advance(&self.db, state.generation, &last, step.compared, written).await? {
                tracing::info!(
                    "the pass is over: the column was made anew, or somebody else finished it"
                );
                return Ok(state::load(&self.db).await?.believable);
            }
            position = Some(last);
            self.rest(start.elapsed(), written, stop).await;
        };
        // Rows that were locked, and events that came meanwhile, are in the queue.
        while !queue::clear_before(&self.db, end_secs).await? {
            if stop.is_cancelled() || !self.lead.still(session) {
                return Ok(false);
            }
            self.wake.call();
            tokio::time::sleep(SETTLE).await;
        }
        if !state::bless(&self.db, state.generation).await? {
            return Ok(state::load(&self.db).await?.believable);
        }
        tracing::info!(
            compared,
            corrected,
            elapsed_ms = started.elapsed().as_millis(),
            "first pass complete; the column is to be believed"
        );
        self.metrics
            .reconcile_last_pass_timestamp_seconds
            .set(end_secs);
        Ok(true)
    }

    /// Has the runs that differ judged anew; returns how many statuses were written.
    async fn correct(&self, step: &Compared) -> Result<i64, Error> {
        self.metrics
            .reconciled_total
            .inc_by(u64::try_from(step.compared).unwrap_or(0));
        let keys: Vec<RunKey> = step
            .differences
            .iter()
            .map(|runs::Difference { key, .. }| key.clone())
            .collect();
        let mut written = 0;
        for batch in keys.chunks(BATCH) {
            let applied = apply(&self.db, batch).await?;
            applied.observe(&self.metrics);
            written += applied.changes.len() as i64;
            if !applied.skipped.is_empty() {
                self.wake.call();
            }
            if let Some(deadline) = applied.next_deadline_secs {
                self.alarm.at(deadline);
            }
        }
        Ok(written)
    }

    async fn rest(&self, worked: Duration, written: i64, stop: &CancellationToken) {
        let mut rest = worked.mul_f64(REST_PARTS);
        if self.notifying_neighbour {
            #[expect(clippy::cast_precision_loss, reason = "a step writes few")]
            let paced = Duration::from_secs_f64(written as f64 / NOTIFYING_RATE);
            rest = rest.max(paced);
        }
        stop.run_until_cancelled(tokio::time::sleep(rest)).await;
    }
}
