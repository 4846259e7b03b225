//! Drains the queue: removes its rows and applies their runs.
//!
//! A notification makes it drain at once. When events arrive fast it polls every few milliseconds
//! instead and suppresses notifications, because a transaction that carries a NOTIFY takes a
//! server-wide lock at commit. Promises that no row waits longer than [`IDLE_POLL`] for its first
//! attempt, whatever notifications are lost and however many rows before it cannot be applied
//! ([`super::passes`]). Called by the daemon; decides no status.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::health::Health;
use super::leadership::LeaderWatch;
use super::passes::Passes;
use super::ui_notifier::UiNotices;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::signals::Signals;
use crate::store::{Drained, MAX_BATCH, Store};

/// The longest sleep without a notification: bounds the cost of a lost one.
const IDLE_POLL: Duration = Duration::from_secs(5);

/// The poll interval while notifications cannot be received.
const UNNOTIFIED_POLL: Duration = Duration::from_millis(100);

/// The poll interval while events arrive fast.
const BUSY_POLL: Duration = Duration::from_millis(2);

/// Above this rate of events per second the worker polls.
const BUSY_RATE: f64 = 150.0;

/// How long one poll suppresses notifications; renewed while events arrive fast.
const SUPPRESSION: Duration = Duration::from_millis(SUPPRESSION_MS.unsigned_abs() as u64);
const SUPPRESSION_MS: i32 = 100;

/// The first wait after the last event, doubled until notifications are certain to arrive: a writer
/// whose notification was suppressed may commit late.
const COOLDOWN: Duration = Duration::from_millis(5);

/// See the module.
#[derive(Debug)]
pub(crate) struct Worker {
    /// The calls into the database.
    pub(crate) store: Store,
    /// Limits the work to the leader's terms.
    pub(crate) leader: LeaderWatch,
    /// Wakes the worker, and passes the deadlines that it finds to the sweeper.
    pub(crate) signals: Signals,
    /// Notifies the web UI of changes.
    pub(crate) ui: UiNotices,
    /// Reports failures.
    pub(crate) health: Health,
    /// The metrics to count in.
    pub(crate) metrics: Metrics,
}

/// The worker's state between two polls.
#[derive(Debug)]
struct Polling {
    rate: Rate,
    passes: Passes,
    suppressed_until: Instant,
    cooldown: Duration,
}

impl Polling {
    fn new(now: Instant) -> Self {
        Self {
            rate: Rate::new(now),
            passes: Passes::new(now),
            suppressed_until: now,
            cooldown: IDLE_POLL,
        }
    }
}

impl Worker {
    /// Runs until `stop`; errors are retried.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut stage =
            self.health
                .stage("worker", Duration::from_millis(50), Duration::from_secs(3));
        while let Some(term) = stop.run_until_cancelled(self.leader.term()).await {
            let mut polling = Polling::new(Instant::now());
            while !term.is_cancelled() {
                let wait = match self.poll(&mut polling).await {
                    Ok(wait) => {
                        stage.succeeded();
                        wait
                    }
                    Err(Error::Stopping) => return,
                    Err(error) => stage.failed(&error, "cannot drain the queue"),
                };
                if wait.is_zero() {
                    continue;
                }
                // A notification during an outage must not shorten the back-off.
                let notified = async {
                    if stage.is_failing() {
                        std::future::pending::<()>().await;
                    } else {
                        self.signals.wakeup.notified().await;
                    }
                };
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                    () = notified => {}
                }
            }
        }
    }

    /// Polls the queue once. Returns how long to sleep without a notification.
    async fn poll(&self, polling: &mut Polling) -> Result<Duration, Error> {
        let start = Instant::now();
        let busy = polling.rate.per_second(start) > BUSY_RATE;
        self.signals.set_busy(busy);
        let suppression = polling.suppressed_until.saturating_duration_since(start);
        let renew = busy && suppression < SUPPRESSION / 2;
        let suppress_ms = renew.then_some(SUPPRESSION_MS);

        let rows = polling.passes.next(start);
        let drained = self.store.drain(&rows, MAX_BATCH, suppress_ms).await?;

        let end = Instant::now();
        if renew {
            polling.suppressed_until = end + SUPPRESSION;
        }
        polling.passes.advance(&rows, &drained, end - start, end);
        polling.rate.count(drained.done(), end);
        self.observe(&drained);
        Ok(self.next_wait(&drained, polling, end))
    }

    fn next_wait(&self, drained: &Drained, polling: &mut Polling, now: Instant) -> Duration {
        if drained.is_full() || polling.passes.is_full_pass() {
            return Duration::ZERO;
        }
        let retry = polling.passes.retry_wait(now);
        if now < polling.suppressed_until || polling.rate.per_second(now) > BUSY_RATE {
            polling.cooldown = COOLDOWN;
            return BUSY_POLL;
        }
        let limit = if self.signals.is_unnotified() {
            UNNOTIFIED_POLL
        } else {
            IDLE_POLL
        };
        let wait = polling.cooldown.min(limit);
        polling.cooldown = (polling.cooldown * 2).min(IDLE_POLL);
        retry.map_or(wait, |retry| wait.min(retry))
    }

    fn observe(&self, drained: &Drained) {
        self.metrics.events_total.inc_by(drained.done() as u64);
        for lag in &drained.lags_secs {
            self.metrics.event_lag_seconds.observe(lag.max(0.0));
        }
        self.ui.add(&drained.applied.changes);
        drained
            .applied
            .count(&self.signals.deadlines, &self.metrics);
    }
}

/// The rate of events per second, over windows of 100 ms.
#[derive(Debug)]
struct Rate {
    start: Instant,
    count: usize,
    last: f64,
}

impl Rate {
    const WINDOW: Duration = Duration::from_millis(100);

    fn new(now: Instant) -> Self {
        Self {
            start: now,
            count: 0,
            last: 0.0,
        }
    }

    fn roll(&mut self, now: Instant) {
        let elapsed = now - self.start;
        if elapsed >= Self::WINDOW {
            #[expect(clippy::cast_precision_loss, reason = "counts of 100 ms are small")]
            let count = self.count as f64;
            self.last = count / elapsed.as_secs_f64();
            self.start = now;
            self.count = 0;
        }
    }

    fn count(&mut self, events: usize, now: Instant) {
        self.roll(now);
        self.count += events;
    }

    fn per_second(&mut self, now: Instant) -> f64 {
        self.roll(now);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_whole_window() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        rate.count(30, start + Duration::from_millis(10));
        assert!(rate.per_second(start + Duration::from_millis(50)) < 1.0);
        let seen = rate.per_second(start + Duration::from_millis(100));
        assert!((299.0..=301.0).contains(&seen), "{seen}");
        assert!(rate.per_second(start + Duration::from_millis(300)) < 1.0);
    }
}
