//! Keeps the bounds current that readers of exact statuses rely on.
//!
//! Owns the mark of the next publication and when it is due. Called by the sweeper after each scan,
//! when the runs whose deadline has passed are written. A late publication makes reads slower, never
//! wrong: readers then look at the deadlines of the running runs themselves.

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::store::{Mark, Store};

/// How often the bounds are published while the ones before are still useful.
const INTERVAL: Duration = Duration::from_secs(5);

/// The first wait after a publication that had to wait for other transactions. It doubles, up to
/// [`INTERVAL`].
const FIRST_RETRY: Duration = Duration::from_millis(20);

/// A mark that is older is replaced: a transaction that has lasted for so long holds back every mark.
const MAX_AGE_SECS: f64 = 60.0;

/// See the module.
#[derive(Debug)]
pub(super) struct ReadBounds {
    mark: Option<Mark>,
    /// Until when no deadline passes, seconds since the epoch; none if this is not known.
    until_secs: Option<f64>,
    /// When the next publication is due, while the bounds are useful.
    due: Instant,
    /// The wait before the next attempt, while they are not.
    retry: Duration,
}

impl ReadBounds {
    pub(super) fn new() -> Self {
        Self {
            mark: None,
            until_secs: None,
            due: Instant::now(),
            retry: FIRST_RETRY,
        }
    }

    /// A run's deadline was found that may be earlier than those known.
    pub(super) fn lower(&mut self, deadline_secs: f64) {
        self.until_secs = self.until_secs.map(|until| until.min(deadline_secs));
    }

    /// Nothing is known any longer: the clock stepped, or the cutoff changed.
    pub(super) fn forget(&mut self) {
        self.until_secs = None;
        self.mark = None;
    }

    /// Publishes the bounds, if that is due. Returns how long the sweeper may sleep at most.
    pub(super) async fn publish(
        &mut self,
        store: &Store,
        now_secs: f64,
    ) -> Result<Duration, Error> {
        let now = Instant::now();
        let useful = self.until_secs.is_some_and(|until| now_secs < until);
        if !useful || now >= self.due {
            let publication = store.publish_read_bounds(self.mark).await?;
            if publication.until_secs.is_some() {
                self.until_secs = publication.until_secs;
                self.due = now + INTERVAL;
                self.retry = FIRST_RETRY;
            }
            let outdated = self
                .mark
                .is_none_or(|mark| mark.at_secs + MAX_AGE_SECS < publication.mark.at_secs);
            if publication.until_secs.is_some() || outdated {
                self.mark = Some(publication.mark);
            }
        }
        let left = self.until_secs.map_or(0.0, |until| until - now_secs);
        if left > 0.0 {
            return Ok(Duration::from_secs_f64(left.min(MAX_AGE_SECS)));
        }
        let wait = self.retry;
        self.retry = (self.retry * 2).min(INTERVAL);
        Ok(wait)
    }
}
