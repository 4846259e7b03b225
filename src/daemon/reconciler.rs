//! Compares all runs with the definition, continuously, and corrects drift.
//!
//! Until the column is valid it runs the backfill. From then on it makes reconciliation passes at a
//! low rate. A difference that neither a pending event nor a passed deadline explains is drift: a
//! trigger was disabled, a dump was restored, the column was edited by hand. Promises that each
//! pass compares every run, and that it keeps its rate. Called by the daemon; works only while
//! leading.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::health::Health;
use super::leadership::{LeaderWatch, Term};
use super::ui_notifier::UiNotices;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::scan::{
    BATCH, Backfill, Batches, End, Handler, MAX_WRITES_WITH_UPSTREAM_NOTIFY, Outcome, Pace, Scan,
};
use crate::signals::Signals;
use crate::status::RunKey;
use crate::store::{
    Compared, DEADLINE_SLACK, Detail, Difference, Explained, MAX_BATCH, Obstacle, ObstacleKind,
    State, Store,
};

/// A reconciliation pass pauses 49 times as long as it works, whatever its rate: at most 2 % of a
/// core, unless a batch takes more than 0.2 s.
const PAUSE_PARTS: f64 = 49.0;

/// How often a reconciliation pass saves its checkpoint.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(30);

/// Maximum number of runs with drift that one pass logs; the others are only counted.
const MAX_LOGGED: usize = 100;

/// How often the state is checked between two passes: the column may have been invalidated.
const STATE_POLL: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(crate) struct Reconciler {
    /// The calls into the database.
    pub(crate) store: Store,
    /// Limits the work to the leader's terms.
    pub(crate) leader: LeaderWatch,
    /// Receives wakeups, deadlines and changes of the state.
    pub(crate) signals: Signals,
    /// Notifies the web UI of changes.
    pub(crate) ui: UiNotices,
    /// The configured cutoff, seconds; the leader stores its own.
    pub(crate) cutoff_secs: i64,
    /// Maximum runs per second that a pass compares.
    pub(crate) rate: f64,
    /// The shortest time from the beginning of one pass to that of the next.
    pub(crate) interval: Duration,
    /// Whether upstream's triggers send a notification for each status written.
    pub(crate) upstream_notify_triggers: bool,
    /// Reports failures.
    pub(crate) health: Health,
    /// The metrics to count in.
    pub(crate) metrics: Metrics,
}

/// The findings of one pass.
#[derive(Debug, Default)]
struct Found {
    compared: i64,
    drift: usize,
    completed: i64,
    failed: i64,
}

impl Reconciler {
    /// Runs until `stop`; errors are retried.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut stage = self.health.stage(
            "reconciler",
            Duration::from_millis(100),
            Duration::from_secs(5),
        );
        while let Some(term) = stop.run_until_cancelled(self.leader.term()).await {
            while !term.is_cancelled() {
                let start = Instant::now();
                let wait = match self.turn(&term).await {
                    Ok(()) => {
                        stage.succeeded();
                        self.interval.saturating_sub(start.elapsed())
                    }
                    Err(Error::Stopping) => return,
                    Err(error) => stage.failed(&error, "a scan was interrupted"),
                };
                self.signals.state_changed.notify();
                term.run_until_cancelled(self.idle(wait)).await;
            }
        }
    }

    /// Waits until the time has passed or the column is invalidated.
    async fn idle(&self, wait: Duration) {
        let end = Instant::now() + wait;
        loop {
            let rest = end.saturating_duration_since(Instant::now());
            tokio::time::sleep(rest.min(STATE_POLL)).await;
            if rest <= STATE_POLL {
                return;
            }
            // An unreadable state is ignored here: the next pass fails, and its failure is logged.
            if matches!(self.store.load_state().await, Ok(state) if !state.valid) {
                return;
            }
        }
    }

    /// Stores the configured cutoff, and runs the scan that is due.
    async fn turn(&self, term: &Term) -> Result<(), Error> {
        let mut state = self.store.load_state().await?;
        if state.cutoff_secs != self.cutoff_secs
            && self.store.adopt_cutoff(self.cutoff_secs).await?
        {
            tracing::info!(
                cutoff_secs = self.cutoff_secs,
                "the cutoff changed; comparing all runs again"
            );
            self.signals.deadlines.rescan_all();
            state = self.store.load_state().await?;
        }
        self.signals.state_changed.notify();
        if !state.valid {
            if !state.obstacles.is_empty() {
                return self.work_around(&state, term).await;
            }
            if !self.backfill(&state, term).await? {
                return Ok(());
            }
            state = self.store.load_state().await?;
            self.signals.state_changed.notify();
        }
        self.reconcile(&state, term).await
    }

    /// Runs the backfill; returns whether the column is valid afterwards.
    async fn backfill(&self, state: &State, term: &Term) -> Result<bool, Error> {
        tracing::info!(
            resumed = state.scan_position.is_some(),
            compared = state.scan_compared,
            "backfill started"
        );
        let started = Instant::now();
        let backfill = Backfill {
            store: &self.store,
            batch_size: BATCH,
            pace: Pace {
                max_writes: self.max_writes(),
                // At most half of one core.
                pause_parts: 1.0,
                ..Pace::default()
            },
            signals: &self.signals,
            metrics: &self.metrics,
        };
        let (mut compared, mut corrected) = (0, 0);
        let outcome = backfill
            .run(state, term, |progress| {
                (compared, corrected) = (progress.compared, progress.corrected);
            })
            .await?;
        match outcome {
            Outcome::Complete => tracing::info!(
                compared,
                corrected,
                elapsed_secs = started.elapsed().as_secs_f64(),
                "backfill complete; the column is valid"
            ),
            Outcome::Overtaken => {
                tracing::info!("another backfill completed first; the column is valid");
            }
            Outcome::Outdated => {
                tracing::info!("the backfill starts again: the column or its parameters changed");
            }
            Outcome::Stopped => {}
        }
        Ok(matches!(outcome, Outcome::Complete | Outcome::Overtaken))
    }

    fn max_writes(&self) -> Option<f64> {
        self.upstream_notify_triggers
            .then_some(MAX_WRITES_WITH_UPSTREAM_NOTIFY)
    }

    /// While there is an obstacle, the column cannot become valid; the sampler reports it. Events may be
    /// lost, so a scan corrects what can be seen. The next backfill begins at the first run.
    async fn work_around(&self, state: &State, term: &Term) -> Result<(), Error> {
        self.store.restart_backfill(state.generation).await?;
        let hidden = |obstacle: &Obstacle| obstacle.kind == ObstacleKind::RowsHidden;
        if state.obstacles.iter().any(hidden) {
            return Ok(());
        }
        let batches = Batches::after(&self.store, None, BATCH, Detail::Reasons);
        let scan = Scan::new(batches).at(self.pace());
        scan.run(term, &mut Repair::new(self)).await.map(drop)
    }

    /// One reconciliation pass, from the checkpoint to the last run.
    async fn reconcile(&self, state: &State, term: &Term) -> Result<(), Error> {
        let position = state.scan_position.clone();
        let whole = position.is_none();
        let batches = Batches::after(&self.store, position, BATCH, Detail::Reasons);
        let scan = Scan::new(batches).at(self.pace()).with_checkpoint(
            &self.store,
            state,
            CHECKPOINT_INTERVAL,
        );
        let mut repair = Repair::new(self);
        let end = scan.run(term, &mut repair).await?;
        if let End::Complete { at_secs } = end
            && self.store.complete_scan(state.generation).await?
        {
            self.report(at_secs, whole, &repair.found);
        }
        Ok(())
    }

    fn pace(&self) -> Pace {
        Pace {
            max_rate: Some(self.rate),
            max_writes: self.max_writes(),
            pause_parts: PAUSE_PARTS,
            yield_to: Some(self.signals.clone()),
            ..Pace::default()
        }
    }

    fn report(&self, at_secs: f64, whole: bool, found: &Found) {
        self.metrics
            .reconcile_last_pass_timestamp_seconds
            .set(at_secs);
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
                "a reconciliation pass found drift and corrected it"
            );
        } else {
            tracing::debug!(
                compared = found.compared,
                "a reconciliation pass found no drift"
            );
        }
    }

    fn log_drift(&self, run: &Difference, nth: usize) {
        let cause = if run.is_of_time() { "time" } else { "evidence" };
        self.metrics.drift_total.with_label_values(&[cause]).inc();
        if nth <= MAX_LOGGED {
            tracing::warn!(
                run.flow_id = run.key.flow_id,
                run.run_number = run.key.run_number,
                stored = run.stored.as_str(),
                expected = run.expected.as_str(),
                reason = run.reason.as_str(),
                stored_finished_at = run.stored_finished_at,
                finished_at = run.finished_at,
                cause,
                attempt_ok = run.ok_value,
                attempt_ok_ts = run.ok_ts,
                attempt_ts = run.retry_ts,
                last_heartbeat_ts = run.heartbeat,
                "the stored status had drifted; corrected"
            );
        }
        if nth == MAX_LOGGED {
            tracing::warn!("further drift of this pass is counted, not logged");
        }
    }
}

/// Applies the runs of each batch that differ, except those that the worker or the sweeper is about
/// to apply.
struct Repair<'a> {
    reconciler: &'a Reconciler,
    found: Found,
}

impl<'a> Repair<'a> {
    fn new(reconciler: &'a Reconciler) -> Self {
        Self {
            reconciler,
            found: Found::default(),
        }
    }
}

impl Handler for Repair<'_> {
    async fn handle(&mut self, batch: &Compared) -> Result<i64, Error> {
        let Self { reconciler, found } = self;
        reconciler
            .metrics
            .reconciled_total
            .inc_by(u64::try_from(batch.compared).unwrap_or(0));
        batch
            .refused
            .iter()
            .for_each(|run| run.count(&reconciler.metrics));
        found.compared += batch.compared;
        found.completed += batch.completed;
        found.failed += batch.failed;
        let wrong: Vec<(&Difference, Explained)> = batch
            .differences
            .iter()
            .map(|run| (run, run.classify(DEADLINE_SLACK)))
            .filter(|(_, class)| matches!(class, Explained::OverdueDeadline | Explained::Drift))
            .collect();
        let mut written = 0;
        for batch in wrong.chunks(MAX_BATCH) {
            let keys: Vec<RunKey> = batch.iter().map(|(run, _)| run.key.clone()).collect();
            let applied = reconciler.store.apply(&keys).await?;
            reconciler.ui.add(&applied.changes);
            applied.report(&reconciler.signals, &reconciler.metrics);
            written += i64::try_from(applied.changes.len()).unwrap_or(0);
            // A run that needed no change was corrected meanwhile: its event was pending after all.
            let changed: HashSet<&RunKey> = applied.changes.iter().map(|c| &c.key).collect();
            for (run, class) in batch {
                if *class == Explained::Drift && changed.contains(&run.key) {
                    found.drift += 1;
                    reconciler.log_drift(run, found.drift);
                }
            }
        }
        Ok(written)
    }
}
