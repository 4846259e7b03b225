//! Sets the gauges and conditions that no stage sets by its work: the queue, the pool, the
//! obstacles, and whether the column is valid.
//!
//! The only code that sets the gauge of validity. Samples at an interval, and at once when a stage
//! signals that the state may have changed. Invalidates the column as soon as it finds an obstacle,
//! so that readers of the column notice it too. Called by the daemon; works on followers too.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::health::Health;
use crate::error::{Error, Remedy};
use crate::metrics::{Condition, Metrics};
use crate::signals::Signals;
use crate::store::{ObstacleKind, State, Store};

/// The interval while the column is valid.
const INTERVAL: Duration = Duration::from_secs(5);

/// The interval until the column is valid.
const INTERVAL_UNTIL_VALID: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Sampler {
    /// The calls into the database.
    pub(crate) store: Store,
    /// Signals when the state may have changed.
    pub(crate) signals: Signals,
    /// Receives the conditions.
    pub(crate) health: Health,
    /// An event that has been in the queue for longer is delayed.
    pub(crate) max_event_age: Duration,
    /// The metrics to set.
    pub(crate) metrics: Metrics,
}

impl Sampler {
    /// Runs until `stop`; then closes the pool.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            self.store.db().observe_pool();
            let sampled = self.sample().await;
            let unreachable = matches!(&sampled, Err(error) if error.is_unreachable());
            self.health.set(
                Condition::DatabaseUnreachable,
                unreachable.then_some("the database does not answer"),
            );
            match sampled {
                Ok(state) => self.observe(&state).await,
                // Errors are counted by the call, and logged by the stages.
                Err(error) => self.observe_missing(&error),
            }
            self.health.check_stages();
            let interval = if self.metrics.valid.get() == 1 {
                INTERVAL
            } else {
                INTERVAL_UNTIL_VALID
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.signals.state_changed.notified() => {}
                () = tokio::time::sleep(interval) => {}
            }
        }
        self.store.db().close();
    }

    async fn sample(&self) -> Result<State, Error> {
        let (depth, oldest_secs) = self.store.queue_depth().await?;
        self.metrics.queue_depth.set(depth);
        self.metrics.queue_oldest_age_seconds.set(oldest_secs);
        let delayed = oldest_secs > self.max_event_age.as_secs_f64();
        let reason =
            format!("events are delayed: the oldest has been in the queue for {oldest_secs:.0} s");
        self.health
            .set(Condition::EventsDelayed, delayed.then_some(&reason));
        self.store.load_state().await
    }

    async fn observe(&self, state: &State) {
        for (kind, condition) in [
            (ObstacleKind::TriggersMissing, Condition::TriggersMissing),
            (ObstacleKind::RowsHidden, Condition::RowsHidden),
            (ObstacleKind::CollationChanged, Condition::CollationChanged),
        ] {
            let of_kind = state.obstacles.iter().filter(|o| o.kind == kind);
            let details: Vec<&str> = of_kind.map(|o| o.detail.as_str()).collect();
            let reason = details.join("; ");
            self.health
                .set(condition, (!details.is_empty()).then_some(&reason));
        }
        self.metrics
            .read_bounds_outdated_seconds
            .set(state.read_bounds_outdated_secs);
        let mut valid = state.valid;
        if valid && !state.obstacles.is_empty() && self.store.invalidate().await.is_ok() {
            valid = false;
        }
        self.metrics.valid.set(valid.into());
        if valid {
            self.health.set(Condition::ColumnInvalid, None);
        } else {
            // The daemon's backfill ends it. What only an operator can mend was logged above.
            self.health.set_transient(
                Condition::ColumnInvalid,
                "the column is not valid: the backfill is not complete",
            );
        }
    }

    /// Handles a state that cannot be read.
    fn observe_missing(&self, error: &Error) {
        // Objects were removed, or a restore left them out: the column is not maintained.
        if error.remedy() == Remedy::Migrate {
            self.metrics.valid.set(0);
            self.health.set(
                Condition::ColumnInvalid,
                Some(
                    "the column is not valid: objects of the indexer are missing, run \
                     `status-indexer migrate up`",
                ),
            );
        }
    }
}
