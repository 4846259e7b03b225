//! Empties the queue: takes its rows and applies their runs.
//!
//! Woken by a notification it drains at once. When events come fast it comes by itself every few
//! milliseconds instead and tells writers so, because a transaction that carries a NOTIFY takes a
//! lock of the whole database at commit. Promises that no row waits longer than [`IDLE_POLL`] for
//! a first look, whatever notifications were lost. Called by the daemon; decides no status.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::error::{Error, Remedy, chain};
use crate::metrics::Metrics;
use crate::pg::{Db, SessionMode};
use crate::signals::{Alarm, LeadWatch, Wake};
use crate::store::apply::BATCH;
use crate::store::queue::{self, Drained};

/// The longest sleep without a notification: the safety net under lost ones.
pub const IDLE_POLL: Duration = Duration::from_secs(5);

/// How often the queue is looked at where nobody can be notified.
pub const POOLED_POLL: Duration = Duration::from_millis(100);

/// The time between two looks while events come fast.
const BUSY_POLL: Duration = Duration::from_millis(2);

/// Events a second from which on the worker comes by itself.
const BUSY_RATE: f64 = 150.0;

/// For how long writers are told not to notify; renewed while events come fast.
const QUIET: Duration = Duration::from_millis(QUIET_MS.unsigned_abs() as u64);
const QUIET_MS: i32 = 100;

/// The first wait after the last event, doubled until a notification is sure to come: writers
/// that were told to be quiet may commit late.
const TAIL: Duration = Duration::from_millis(5);

/// Ids are committed out of order: a look behind a hint goes back so far.
const HINT_SLACK: i64 = 2_000;

/// Looks without the hint may take this share of the time at most, as one part in so many: over
/// the dead rows that somebody's old snapshot keeps, they are slow.
const FULL_LOOK_PARTS: u32 = 20;

/// A full look at least this often while there is work.
const FULL_LOOK: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug)]
pub struct Worker {
    /// The way to the database.
    pub db: Db,
    /// Work only while leading.
    pub lead: LeadWatch,
    /// Called by the listener, and by whoever puts rows into the queue.
    pub wake: Wake,
    /// Told of deadlines.
    pub alarm: Alarm,
    /// What it counts.
    pub metrics: Metrics,
}

/// What the worker remembers between two looks.
#[derive(Debug)]
struct Pace {
    rate: Rate,
    batch: usize,
    hint: i64,
    full_look_due: Instant,
    quiet_until: Instant,
    tail: Duration,
    stuck: Backoff,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self {
            rate: Rate::new(now),
            batch: BATCH,
            hint: 0,
            full_look_due: now,
            quiet_until: now,
            tail: IDLE_POLL,
            stuck: Backoff::new(Duration::from_millis(10), Duration::from_millis(500)),
        }
    }
}

impl Worker {
    /// Runs until `stop`; errors are waited out.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(3));
        loop {
            let Some(session) = stop.run_until_cancelled(self.lead.leading()).await else {
                return;
            };
            let mut pace = Pace::new(Instant::now());
            while self.lead.still(session) && !stop.is_cancelled() {
                let wait = match self.look(&mut pace).await {
                    Ok(wait) => {
                        backoff.reset();
                        wait
                    }
                    Err(Error::Stopping) => return,
                    Err(error) => {
                        if backoff.is_fresh() {
                            tracing::warn!(error = chain(&error), "the queue was not drained");
                        }
                        if error.remedy() == Remedy::Refused {
                            self.step_aside(&mut pace).await;
                        }
                        backoff.next_wait()
                    }
                };
                if wait.is_zero() {
                    continue;
                }
                // A call during an outage must not cut the back-off short.
                let called = async {
                    if backoff.is_fresh() {
                        self.wake.called().await;
                    } else {
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                    () = called => {}
                }
            }
        }
    }

    /// One look into the queue. Returns how long to sleep if nobody calls.
    async fn look(&self, pace: &mut Pace) -> Result<Duration, Error> {
        let start = Instant::now();
        let full = start >= pace.full_look_due;
        let after_id = if full { 0 } else { pace.hint };
        let busy = pace.rate.per_second(start) > BUSY_RATE;
        self.wake.set_busy(busy);
        let renew = busy && pace.quiet_until.saturating_duration_since(start) < QUIET / 2;
        let quiet_ms = renew.then_some(QUIET_MS);

        let drained = queue::drain(&self.db, after_id, pace.batch, quiet_ms).await?;

        let end = Instant::now();
        if renew {
            pace.quiet_until = end + QUIET;
        }
        if full {
            pace.full_look_due = end + FULL_LOOK.max((end - start) * FULL_LOOK_PARTS);
        }
        if let Some(last_id) = drained.last_id {
            let hint = last_id - HINT_SLACK;
            // A full look is right also where the ids began anew under a running daemon.
            pace.hint = if full { hint } else { pace.hint.max(hint) };
        }
        pace.rate.count(drained.claimed, end);
        self.observe(&drained);
        Ok(self.next_wait(&drained, pace, end))
    }

    fn next_wait(&self, drained: &Drained, pace: &mut Pace, now: Instant) -> Duration {
        let claimed = drained.claimed;
        if claimed > 0 && drained.outcome.skipped.len() == claimed {
            // Only rows that somebody else holds: they are back in the queue.
            return pace.stuck.next_wait();
        }
        pace.stuck.reset();
        if claimed >= drained.asked {
            pace.batch = (pace.batch * 2).min(BATCH);
            return Duration::ZERO;
        }
        if now < pace.quiet_until || pace.rate.per_second(now) > BUSY_RATE {
            pace.tail = TAIL;
            return BUSY_POLL;
        }
        if !drained.outcome.skipped.is_empty() {
            return pace.stuck.next_wait();
        }
        let limit = match self.db.mode() {
            SessionMode::Transaction => POOLED_POLL,
            _ => IDLE_POLL,
        };
        let wait = pace.tail.min(limit);
        pace.tail = (pace.tail * 2).min(IDLE_POLL);
        wait
    }

    /// The batch is refused as a whole: tries smaller ones, and in the end puts the one run that is
    /// refused behind the others.
    async fn step_aside(&self, pace: &mut Pace) {
        if pace.batch > 1 {
            pace.batch /= 2;
            return;
        }
        match queue::postpone(&self.db).await {
            Ok(Some(key)) => tracing::error!(
                run.flow_id = key.flow_id,
                run.run_number = key.run_number,
                "the run's status cannot be written; it is tried again after the others"
            ),
            Ok(None) => {}
            Err(error) => tracing::warn!(error = chain(&error), "a refused run was not put aside"),
        }
    }

    fn observe(&self, drained: &Drained) {
        self.metrics.events_total.inc_by(drained.claimed as u64);
        for lag in &drained.lags_secs {
            self.metrics.event_lag_seconds.observe(lag.max(0.0));
        }
        drained.outcome.observe(&self.metrics);
        if let Some(deadline) = drained.outcome.next_deadline_secs {
            self.alarm.at(deadline);
        }
    }
}

/// Events a second, over windows of 100 ms.
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
