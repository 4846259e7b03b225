//! Sets the gauges that no stage sets by its work: the queue, the pool, and whether the column is valid.
//!
//! The only place that sets the gauge of validity. Samples at an interval, and at once when a stage
//! signals that the state may have changed. Called by the daemon; works whoever leads.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::error::{Error, Remedy};
use crate::metrics::Metrics;
use crate::signals::Signals;
use crate::store::{State, Store};

/// The interval while the column is valid.
const INTERVAL: Duration = Duration::from_secs(10);

/// The interval until the column is valid.
const INTERVAL_UNTIL_VALID: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Sampler {
    /// The calls into the database.
    pub(crate) store: Store,
    /// Says when the state may have changed.
    pub(crate) signals: Signals,
    /// The metrics to set.
    pub(crate) metrics: Metrics,
}

impl Sampler {
    /// Runs until `stop`; then closes the pool.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            self.store.db().observe_pool();
            match self.sample().await {
                Ok(state) => self.metrics.valid.set(state.valid.into()),
                // Objects were removed, or a restore left them out: nobody maintains the column.
                Err(error) if error.remedy() == Remedy::Migrate => self.metrics.valid.set(0),
                // Errors are counted by the call, and logged by the stages.
                Err(_) => {}
            }
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
        self.store.load_state().await
    }
}
