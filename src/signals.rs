//! What the stages tell each other: who leads, that there is work, and when time makes some.
//!
//! All of it is hints. A signal that is lost costs latency; the rows decide.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, watch};

/// Whether this daemon does the work, as last learned by the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lead {
    /// True while the lead's session is up.
    pub leading: bool,
    /// Grows with every session, so that a stage sees a lead that was lost and won again.
    pub session: u64,
}

/// The stages' end of the lead.
#[derive(Debug, Clone)]
pub struct LeadWatch(pub watch::Receiver<Lead>);

impl LeadWatch {
    /// Waits until this daemon leads; returns the session it leads by.
    pub async fn leading(&mut self) -> u64 {
        let session = self
            .0
            .wait_for(|lead| lead.leading)
            .await
            .map(|lead| lead.session);
        match session {
            Ok(session) => session,
            // The listener is gone: the daemon is stopping, and so will the caller be.
            Err(_) => std::future::pending().await,
        }
    }

    /// Returns when the lead is won or lost.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// True while the lead won in `session` lasts.
    #[must_use]
    pub fn still(&self, session: u64) -> bool {
        let lead = *self.0.borrow();
        lead.leading && lead.session == session
    }
}

/// Tells the worker that there may be rows in the queue. Calls coalesce.
#[derive(Debug, Clone, Default)]
pub struct Wake {
    calls: Arc<Notify>,
    busy: Arc<AtomicBool>,
}

impl Wake {
    /// There may be work.
    pub fn call(&self) {
        self.calls.notify_one();
    }

    /// Whether events come fast, so that what can wait should.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// Tells whether events come fast.
    pub fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
    }

    /// Returns once there was a call since the last return.
    pub async fn called(&self) {
        self.calls.notified().await;
    }
}

#[derive(Debug, Default)]
struct AlarmState {
    deadline_secs: Option<f64>,
    full: bool,
}

/// Tells the sweeper of a deadline that may be earlier than the one it sleeps for.
#[derive(Debug, Clone, Default)]
pub struct Alarm {
    state: Arc<Mutex<AlarmState>>,
    changed: Arc<Notify>,
}

/// What the sweeper was told since it last asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alarms {
    /// The earliest deadline reported, seconds since the epoch.
    pub deadline_secs: Option<f64>,
    /// Whether every running run must be looked at: the clock stepped, or the cutoff changed.
    pub full: bool,
}

impl Alarm {
    /// A run's status changes at this moment, seconds since the epoch, if nothing else happens.
    pub fn at(&self, deadline_secs: f64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state
            .deadline_secs
            .is_none_or(|known| deadline_secs < known)
        {
            state.deadline_secs = Some(deadline_secs);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// All deadlines may have moved.
    pub fn all(&self) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .full = true;
        self.changed.notify_one();
    }

    /// Returns once there was news since the last return.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What was reported since the last call, and forgets it.
    #[must_use]
    pub fn take(&self) -> Alarms {
        let state = std::mem::take(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner));
        Alarms {
            deadline_secs: state.deadline_secs,
            full: state.full,
        }
    }

    /// What was reported since the last `take`.
    #[must_use]
    pub fn peek(&self) -> Alarms {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Alarms {
            deadline_secs: state.deadline_secs,
            full: state.full,
        }
    }
}
