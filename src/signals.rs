//! Signals between the stages: there may be work, a deadline is near, the state may have changed.
//!
//! All of them are hints. A lost signal costs latency; the rows in the database decide. Held by
//! every stage; a backfill that runs as a command has signals of its own, which nothing waits for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// All signals. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// To the worker: the queue may hold rows.
    pub wakeup: Wakeup,
    /// To the sweeper: a deadline may be earlier than known.
    pub deadlines: Deadlines,
    /// To the sampler: the state of the column may have changed.
    pub state_changed: Wakeup,
    busy: Arc<AtomicBool>,
    unnotified: Arc<AtomicBool>,
}

impl Signals {
    /// Whether notifications cannot be received, so that the worker polls.
    #[must_use]
    pub fn is_unnotified(&self) -> bool {
        self.unnotified.load(Ordering::Relaxed)
    }

    /// Sets whether notifications cannot be received; returns the former value.
    pub fn set_unnotified(&self, unnotified: bool) -> bool {
        self.unnotified.swap(unnotified, Ordering::Relaxed)
    }

    /// Whether events arrive fast, so that background work should yield.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// Sets whether events arrive fast.
    pub fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
    }
}

/// Wakes a stage. Notifications coalesce.
#[derive(Debug, Clone, Default)]
pub struct Wakeup(Arc<Notify>);

impl Wakeup {
    /// Wakes the stage, now or when it next waits.
    pub fn notify(&self) {
        self.0.notify_one();
    }

    /// Returns once there was a notification since the last return.
    pub async fn notified(&self) {
        self.0.notified().await;
    }
}

/// What was scheduled since the sweeper last took it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Schedule {
    /// The earliest deadline, seconds since the epoch.
    pub deadline_secs: Option<f64>,
    /// Whether every running run must be scanned: the clock stepped, or the cutoff changed.
    pub rescan_all: bool,
}

/// Schedules the sweeper's next scan.
#[derive(Debug, Clone, Default)]
pub struct Deadlines {
    schedule: Arc<Mutex<Schedule>>,
    changed: Arc<Notify>,
}

impl Deadlines {
    /// A run's status changes at this time, seconds since the epoch, unless something else happens.
    pub fn schedule(&self, deadline_secs: f64) {
        let mut schedule = self.lock();
        if schedule
            .deadline_secs
            .is_none_or(|known| deadline_secs < known)
        {
            schedule.deadline_secs = Some(deadline_secs);
            drop(schedule);
            self.changed.notify_one();
        }
    }

    /// Any deadline may have moved: all running runs must be scanned.
    pub fn rescan_all(&self) {
        self.lock().rescan_all = true;
        self.changed.notify_one();
    }

    /// Returns once the schedule has changed since the last return.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes what was scheduled since the last call.
    #[must_use]
    pub fn take(&self) -> Schedule {
        std::mem::take(&mut *self.lock())
    }

    /// What was scheduled since the last `take`.
    #[must_use]
    pub fn peek(&self) -> Schedule {
        *self.lock()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
