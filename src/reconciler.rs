//! Proves the column: walks all runs for ever, and has those that are wrong judged anew.
//!
//! Until the column is believable it makes the first pass; from then on it walks gently, and what
//! it finds wrong without an event or a deadline to explain it is drift: a trigger that was
//! disabled, a restore, an edit by hand. Promises that every run's turn comes, and that it keeps to
//! its rate. Called by the daemon; works only while leading.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::error::{Error, chain};
use crate::metrics::Metrics;
use crate::pg::Db;
use crate::signals::LeadWatch;
use crate::status::RunKey;
use crate::store::apply::{BATCH, apply};
use crate::store::runs::{Compared, Detail, Difference, compare};
use crate::store::state::{self, State};
use crate::walk::{FirstPass, Listeners, NOTIFYING_RATE, Outcome, Pace, STEP, observe};

/// A steady pass rests so many times as long as it worked, whatever its rate: 2 % of a core.
const STEADY_REST_PARTS: f64 = 49.0;

/// While events come fast, a steady pass goes slower by this factor.
const YIELD: u32 = 4;

/// Steps of a steady pass between two records of its position.
const RECORD_EVERY: u32 = 8;

/// Runs found wrong in one pass that are logged one by one.
const LOGGED: usize = 100;

/// How often the state is looked at while there is no pass to make: somebody may have removed the
/// column and made it anew.
const IDLE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct Reconciler {
    /// The way to the database.
    pub db: Db,
    /// Work only while leading.
    pub lead: LeadWatch,
    /// Who is told what it finds.
    pub listeners: Listeners,
    /// The cutoff that this daemon was configured with, seconds; the leader's is in force.
    pub cutoff_secs: i64,
    /// Runs a second that a steady pass compares.
    pub rate: f64,
    /// The shortest time from the beginning of one steady pass to that of the next.
    pub interval: Duration,
    /// Whether upstream's triggers send a message for each status written.
    pub notifying_neighbour: bool,
    /// What it counts.
    pub metrics: Metrics,
}

/// What one steady pass found.
#[derive(Debug, Default)]
struct Found {
    compared: i64,
    drift: usize,
    completed: i64,
    failed: i64,
}

impl Reconciler {
    /// Runs until `stop`; errors are waited out.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            let Some(session) = stop.run_until_cancelled(self.lead.leading()).await else {
                return;
            };
            let start = Instant::now();
            let wait = match self.turn(session, &stop).await {
                Ok(()) => {
                    backoff.reset();
                    self.interval.saturating_sub(start.elapsed())
                }
                Err(Error::Stopping) => return,
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
            let mut lead = self.lead.clone();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.idle(wait) => {}
                () = lead.changed() => {}
            }
        }
    }

    /// Waits, but no longer than until the column is not to be believed any more.
    async fn idle(&self, wait: Duration) {
        let end = Instant::now() + wait;
        loop {
            let rest = end.saturating_duration_since(Instant::now());
            tokio::time::sleep(rest.min(IDLE)).await;
            if rest <= IDLE {
                return;
            }
            // While it cannot be read, there is nothing to do here about it.
            if matches!(state::load(&self.db).await, Ok(state) if !state.believable) {
                return;
            }
        }
    }

    /// What a leader has to do: put its cutoff in force, and make the pass that is due.
    async fn turn(&self, session: u64, stop: &CancellationToken) -> Result<(), Error> {
        let mut state = state::load(&self.db).await?;
        if state.cutoff_secs != self.cutoff_secs
            && state::adopt_cutoff(&self.db, self.cutoff_secs).await?
        {
            tracing::info!(
                cutoff_secs = self.cutoff_secs,
                "another cutoff is in force; all runs are looked at again"
            );
            self.listeners.alarm.all();
            state = state::load(&self.db).await?;
        }
        self.metrics.believable.set(state.believable.into());
        if !state.believable && !state.listening {
            tracing::warn!(
                "a trigger is missing or disabled, so that no pass can make the column believable: \
                 run `status-indexer migrate status`"
            );
            state::begin_anew(&self.db, state.generation).await?;
            return Ok(());
        }
        if !state.believable && !self.first_pass(state, session, stop).await? {
            return Ok(());
        }
        let state = state::load(&self.db).await?;
        self.steady_pass(state, session, stop).await
    }

    /// Makes the column believable; whether it is now.
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
        let pass = FirstPass {
            db: &self.db,
            pace: Pace {
                step: STEP,
                concurrency: 1,
                max_rate: None,
                max_writes: self.notifying_neighbour.then_some(NOTIFYING_RATE),
                // Half of one core at the most.
                rest_parts: 1.0,
            },
            listeners: self.listeners.clone(),
            metrics: &self.metrics,
        };
        let (mut compared, mut corrected) = (0, 0);
        let (stop, lead) = (stop.clone(), self.lead.clone());
        let go_on = move || !stop.is_cancelled() && lead.still(session);
        let outcome = pass
            .run(state, go_on, |progress| {
                (compared, corrected) = (progress.compared, progress.corrected);
            })
            .await?;
        let believable = match outcome {
            Outcome::Complete => {
                tracing::info!(
                    compared,
                    corrected,
                    elapsed_secs = started.elapsed().as_secs_f64(),
                    "first pass complete; the column is to be believed"
                );
                true
            }
            Outcome::ByAnother => {
                tracing::info!(
                    "somebody else completed the first pass; the column is to be believed"
                );
                true
            }
            Outcome::Outdated => {
                tracing::info!("the first pass begins anew: the column or its parameters changed");
                false
            }
            Outcome::Stopped => false,
        };
        self.metrics.believable.set(believable.into());
        Ok(believable)
    }

    /// Walks on from where the last leader was, to the last run.
    async fn steady_pass(
        &self,
        state: State,
        session: u64,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let pace = Pace {
            step: STEP,
            concurrency: 1,
            max_rate: Some(self.rate),
            max_writes: self.notifying_neighbour.then_some(NOTIFYING_RATE),
            rest_parts: STEADY_REST_PARTS,
        };
        let whole = state.pass_position.is_none();
        let mut position = state.pass_position;
        let mut found = Found::default();
        let (mut steps, mut unrecorded) = (0_u32, (0, 0));
        loop {
            let start = Instant::now();
            let step = compare(&self.db, position.as_ref(), pace.step, Detail::Reasons).await?;
            let written = self.repair(&step, &mut found).await?;
            let Some(last) = step.last.clone() else {
                break self.finish(state.generation, whole, &step, &found).await;
            };
            steps += 1;
            unrecorded = (unrecorded.0 + step.compared, unrecorded.1 + written);
            if steps.is_multiple_of(RECORD_EVERY) {
                let (compared, corrected) = std::mem::take(&mut unrecorded);
                match state::advance(&self.db, state.generation, &last, compared, corrected).await?
                {
                    Some(true) => {}
                    Some(false) | None => return Ok(()),
                }
            }
            position = Some(last);
            let mut rest = pace.rest(start.elapsed(), step.compared, written);
            if step.compared < i64::from(pace.step) {
                // The end is near by: nothing to pace for.
                rest = Duration::ZERO;
            }
            if self.listeners.wake.is_busy() {
                rest *= YIELD;
            }
            let rested = stop.run_until_cancelled(tokio::time::sleep(rest)).await;
            if rested.is_none() || !self.lead.still(session) {
                return Ok(());
            }
        }
    }

    async fn finish(
        &self,
        generation: i64,
        whole: bool,
        step: &Compared,
        found: &Found,
    ) -> Result<(), Error> {
        if !state::finish(&self.db, generation).await? {
            return Ok(());
        }
        self.metrics
            .reconcile_last_pass_timestamp_seconds
            .set(step.at_secs);
        if whole {
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
            for (status, count) in [("completed", found.completed), ("failed", found.failed)] {
                self.metrics
                    .runs
                    .with_label_values(&[status])
                    .set(count as f64);
            }
        }
        if found.drift > 0 {
            tracing::warn!(
                compared = found.compared,
                drift = found.drift,
                "a pass over all runs found statuses that were wrong, and mended them"
            );
        } else {
            tracing::debug!(
                compared = found.compared,
                "a pass over all runs found no drift"
            );
        }
        Ok(())
    }

    /// Has the runs judged anew whose difference nothing explains; returns how many were written.
    async fn repair(&self, step: &Compared, found: &mut Found) -> Result<i64, Error> {
        self.metrics
            .reconciled_total
            .inc_by(u64::try_from(step.compared).unwrap_or(0));
        found.compared += step.compared;
        found.completed += step.completed;
        found.failed += step.failed;
        let wrong: Vec<&Difference> = step
            .differences
            .iter()
            .filter(|difference| !difference.is_in_flight())
            .collect();
        let mut written = 0;
        for batch in wrong.chunks(BATCH) {
            let keys: Vec<RunKey> = batch.iter().map(|wrong| wrong.key.clone()).collect();
            let applied = apply(&self.db, &keys).await?;
            observe(&applied, &self.metrics, &self.listeners);
            written += i64::try_from(applied.changes.len()).unwrap_or(0);
            // What was mended in between was in flight after all.
            let changed: HashSet<&RunKey> = applied.changes.iter().map(|c| &c.key).collect();
            for wrong in batch.iter().filter(|wrong| changed.contains(&wrong.key)) {
                // Nor is it drift that we came before the sweeper: after an outage, or a leap.
                if wrong.has_run_out() {
                    continue;
                }
                found.drift += 1;
                self.tell(wrong, found.drift);
            }
        }
        Ok(written)
    }

    fn tell(&self, wrong: &Difference, nth: usize) {
        let cause = if wrong.is_of_time() {
            "time"
        } else {
            "evidence"
        };
        self.metrics.drift_total.with_label_values(&[cause]).inc();
        if nth <= LOGGED {
            tracing::warn!(
                run.flow_id = wrong.key.flow_id,
                run.run_number = wrong.key.run_number,
                stored = wrong.stored.as_str(),
                expected = wrong.expected.as_str(),
                reason = wrong.reason.as_str(),
                cause,
                attempt_ok = wrong.ok_value,
                attempt_ok_ts = wrong.ok_ts,
                attempt_ts = wrong.retry_ts,
                last_heartbeat_ts = wrong.heartbeat,
                "the stored status was wrong"
            );
        }
        if nth == LOGGED {
            tracing::warn!("more wrong statuses of this pass are counted, not logged");
        }
    }
}
