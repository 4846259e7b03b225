//! Turns the clock into work: finds the runs whose heartbeat has gone stale, or come into range.
//!
//! Sleeps until the first moment a status can change by time alone, not for an interval. All time
//! is the database's. Promises that no deadline passes by more than one look, that a heartbeat that
//! leaps out of range, which no clock writes, is found within the interval, and that looks take a
//! bounded share of the time; never decides a status itself, `apply` does.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::error::{Error, chain};
use crate::metrics::Metrics;
use crate::pg::Db;
use crate::signals::{Alarm, LeadWatch, Wake};
use crate::status::RunKey;
use crate::store::apply::{BATCH, apply};
use crate::store::runs::{Due, due};

/// As far ahead as a deadline is told: no look is further off.
const FAR: Duration = Duration::from_secs(3_600);

/// The shortest time between two looks, so that deadlines close together share one.
const MIN_SLEEP: Duration = Duration::from_millis(25);

/// An insert whose heartbeat is no older than this emits nothing: its deadline may lie so much
/// closer than the cutoff, and be known to nobody before the next look.
const UNSEEN: Duration = Duration::from_secs(5);

/// The sleep where the cutoff is as short as that.
const LEAST_CUTOFF: Duration = Duration::from_millis(500);

/// A look may take one part of the time in so many, as long as deadlines stay within a second.
const SHARE_PARTS: u32 = 30;

/// The longest that the bounded share may delay a look.
const MAX_DELAY: Duration = Duration::from_millis(800);

/// A look begins so far before the end of the last one: statuses written while it read, and
/// inserts that were taken for fresh.
const OVERLAP_SECS: f64 = 6.0;

/// A look lies so far behind the deadline: at the deadline itself the run is still in range.
const AFTER_DEADLINE: Duration = Duration::from_millis(2);

/// See the module.
#[derive(Debug)]
pub struct Sweeper {
    /// The way to the database.
    pub db: Db,
    /// Work only while leading.
    pub lead: LeadWatch,
    /// Told of deadlines by those who apply, and of steps of the clock.
    pub alarm: Alarm,
    /// Called for runs that had to be put into the queue.
    pub wake: Wake,
    /// The cutoff in force, which bounds the sleep.
    pub cutoff: Duration,
    /// The longest sleep, and how often a look asks for heartbeats that were set back, far ahead or
    /// to null: no trigger tells them from those of healthy runs.
    pub interval: Duration,
    /// What it counts.
    pub metrics: Metrics,
}

impl Sweeper {
    /// Runs until `stop`; errors are waited out.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(3));
        loop {
            let Some(session) = stop.run_until_cancelled(self.lead.leading()).await else {
                return;
            };
            // None: a new leader looks at everything that time may have changed.
            let mut since_secs = None;
            let mut jumps_at = Instant::now();
            while self.lead.still(session) && !stop.is_cancelled() {
                let start = Instant::now();
                let news = self.alarm.take();
                if news.full {
                    since_secs = None;
                } else if let (Some(since), Some(deadline)) = (since_secs, news.deadline_secs) {
                    since_secs = Some(deadline.min(since) - 1.0);
                }
                let jumps = start >= jumps_at;
                let sleep = match self.look(since_secs, jumps, &stop).await {
                    Ok(outcome) => {
                        backoff.reset();
                        since_secs = Some(outcome.at_secs - OVERLAP_SECS);
                        if jumps {
                            jumps_at = start + self.interval;
                        }
                        self.sleep_after(&outcome, start, jumps_at)
                    }
                    Err(Error::Stopping) => return,
                    Err(error) => {
                        if backoff.is_fresh() {
                            tracing::warn!(error = chain(&error), "deadlines were not looked at");
                        }
                        if news.full {
                            self.alarm.all();
                        }
                        let wait = backoff.next_wait();
                        Sleep {
                            at_least: wait,
                            until: wait,
                            now_secs: 0.0,
                        }
                    }
                };
                if !self.rest(&sleep, session, &stop).await {
                    return;
                }
            }
        }
    }

    /// One look. Returns the clock it was made at, and when the next is due.
    async fn look(
        &self,
        since_secs: Option<f64>,
        jumps: bool,
        stop: &CancellationToken,
    ) -> Result<Outcome, Error> {
        let found = due(&self.db, since_secs, jumps).await?;
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        self.metrics
            .runs
            .with_label_values(&["running"])
            .set(found.running as f64);
        let mut next = found.next_deadline_secs;
        let started = Instant::now();
        for batch in found.runs.chunks(BATCH) {
            if stop.is_cancelled() {
                break;
            }
            let deadline = self.apply(batch, &found, started).await?;
            next = match (next, deadline) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        Ok(Outcome {
            at_secs: found.at_secs,
            taken: started,
            next_deadline_secs: next,
        })
    }

    async fn apply(
        &self,
        batch: &[(RunKey, f64)],
        found: &Due,
        started: Instant,
    ) -> Result<Option<f64>, Error> {
        let keys: Vec<RunKey> = batch.iter().map(|(key, _)| key.clone()).collect();
        let applied = apply(&self.db, &keys).await?;
        if !applied.skipped.is_empty() {
            self.wake.call();
        }
        let deadlines: HashMap<&RunKey, f64> = batch
            .iter()
            .map(|(key, deadline)| (key, *deadline))
            .collect();
        let now_secs = found.at_secs + started.elapsed().as_secs_f64();
        for change in &applied.changes {
            if let Some(deadline) = deadlines.get(&change.key) {
                self.metrics
                    .sweep_lag_seconds
                    .observe((now_secs - deadline).max(0.0));
            }
        }
        applied.observe(&self.metrics);
        Ok(applied.next_deadline_secs)
    }

    fn sleep_after(&self, outcome: &Outcome, start: Instant, jumps_at: Instant) -> Sleep {
        let took = start.elapsed();
        self.metrics
            .sweep_duration_seconds
            .observe(took.as_secs_f64());
        let now_secs = outcome.at_secs + outcome.taken.elapsed().as_secs_f64();
        let at_least = (took * SHARE_PARTS).clamp(MIN_SLEEP, MAX_DELAY);
        let longest = jumps_at
            .saturating_duration_since(Instant::now())
            .min(self.cutoff.saturating_sub(UNSEEN).max(LEAST_CUTOFF))
            .max(at_least);
        let until = outcome
            .next_deadline_secs
            .map_or(longest, |deadline| until(deadline, now_secs))
            .clamp(at_least, longest);
        Sleep {
            at_least,
            until,
            now_secs,
        }
    }

    /// Sleeps, but no longer than to a deadline that is reported meanwhile, or the end of the lead.
    /// False when stopping.
    async fn rest(&mut self, sleep: &Sleep, session: u64, stop: &CancellationToken) -> bool {
        let start = Instant::now();
        let mut end = start + sleep.until;
        loop {
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep_until(end.into()) => return true,
                // Whoever led meanwhile may have revived runs: the next lead begins with a full look.
                () = self.lead.changed() => {
                    if !self.lead.still(session) {
                        return true;
                    }
                }
                () = self.alarm.changed() => {
                    let news = self.alarm.peek();
                    let earliest = start + sleep.at_least;
                    if news.full {
                        end = end.min(earliest);
                    }
                    if let Some(deadline) = news.deadline_secs {
                        end = end.min((start + until(deadline, sleep.now_secs)).max(earliest));
                    }
                }
            }
        }
    }
}

struct Outcome {
    at_secs: f64,
    taken: Instant,
    next_deadline_secs: Option<f64>,
}

struct Sleep {
    at_least: Duration,
    until: Duration,
    /// The database's clock when the sleep began, seconds since the epoch.
    now_secs: f64,
}

fn until(deadline_secs: f64, now_secs: f64) -> Duration {
    Duration::try_from_secs_f64((deadline_secs - now_secs).max(0.0))
        .unwrap_or(FAR)
        .min(FAR)
        + AFTER_DEADLINE
}
