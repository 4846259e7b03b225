//! Handles deadlines: finds the runs whose heartbeat went stale, or came into range, by time alone.
//!
//! Sleeps until the next deadline rather than for a fixed interval. All times are the database's.
//! Promises that a scan begins soon after each deadline; that a heartbeat that was written out of
//! range, which fires no trigger, is found within the interval; and that scans take a bounded share
//! of the time. Decides no status: `apply` does. Called by the daemon.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::clock_watch::ClockWatch;
use super::health::Health;
use super::leadership::{LeaderWatch, Term};
use super::read_bounds::ReadBounds;
use super::ui_notifier::UiNotices;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::signals::Signals;
use crate::status::RunKey;
use crate::store::{Due, MAX_BATCH, Store};

/// The longest sleep.
const MAX_SLEEP: Duration = Duration::from_secs(3_600);

/// The shortest sleep, so that deadlines close together share one scan.
const MIN_SLEEP: Duration = Duration::from_millis(25);

/// An insert with a heartbeat at most this old creates no event: its deadline may be closer than
/// the cutoff by this much, and is unknown until the next scan.
const FRESH_INSERT: Duration = Duration::from_secs(5);

/// The longest sleep if the cutoff is shorter than [`FRESH_INSERT`].
const MIN_CUTOFF_SLEEP: Duration = Duration::from_millis(500);

/// Scans may take one part in this many of the time, as long as this delays no scan by more than
/// [`MAX_DELAY`].
const SHARE_PARTS: u32 = 30;

/// The longest delay of a scan that keeps to that share.
const MAX_DELAY: Duration = Duration::from_millis(800);

/// A scan also covers deadlines from this many seconds before the last scan: of statuses written
/// while that scan was reading, and of inserts that were treated as fresh.
const OVERLAP_SECS: f64 = 6.0;

/// A scan starts this long after a deadline: at the deadline itself the run is still in range.
const AFTER_DEADLINE: Duration = Duration::from_millis(2);

/// See the module.
#[derive(Debug)]
pub(crate) struct Sweeper {
    /// The calls into the database.
    pub(crate) store: Store,
    /// Limits the work to the leader's terms.
    pub(crate) leader: LeaderWatch,
    /// Receives deadlines from other stages and steps of the clock; wakes the worker.
    pub(crate) signals: Signals,
    /// Notifies the web UI of changes.
    pub(crate) ui: UiNotices,
    /// The cutoff in force, which bounds the sleep.
    pub(crate) cutoff: Duration,
    /// The longest sleep, and how often a scan includes heartbeats that were set back, far ahead or
    /// to null: no trigger distinguishes them from those of healthy runs.
    pub(crate) interval: Duration,
    /// Reports failures.
    pub(crate) health: Health,
    /// The metrics to count in.
    pub(crate) metrics: Metrics,
}

/// What the next scan covers.
#[derive(Debug)]
struct Coverage {
    clock: ClockWatch,
    /// Deadlines after this, seconds since the epoch; none for every run that time may have
    /// changed.
    since_secs: Option<f64>,
    /// When the next scan includes heartbeats that were written out of range.
    out_of_range_due: Instant,
}

impl Sweeper {
    /// Runs until `stop`; errors are retried.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut stage =
            self.health
                .stage("sweeper", Duration::from_millis(50), Duration::from_secs(3));
        // A new daemon scans everything that time may have changed. Later terms continue from the
        // last scan: another leader evaluated the runs meanwhile, so their deadlines are later.
        let mut coverage = Coverage {
            clock: ClockWatch::default(),
            since_secs: None,
            out_of_range_due: Instant::now(),
        };
        let mut bounds = ReadBounds::new();
        while let Some(term) = stop.run_until_cancelled(self.leader.term()).await {
            bounds.forget();
            while !term.is_cancelled() {
                let sleep = match self.turn(&mut coverage, &mut bounds, &term).await {
                    Ok(sleep) => {
                        stage.succeeded();
                        sleep
                    }
                    Err(Error::Stopping) => return,
                    Err(error) => {
                        Sleep::exactly(stage.failed(&error, "cannot scan for passed deadlines"))
                    }
                };
                self.rest(&sleep, &term).await;
            }
        }
    }

    /// One scan. Returns how long to sleep after it.
    async fn turn(
        &self,
        coverage: &mut Coverage,
        bounds: &mut ReadBounds,
        term: &Term,
    ) -> Result<Sleep, Error> {
        let start = Instant::now();
        let scheduled = self.signals.deadlines.take();
        if let Some(deadline) = scheduled.deadline_secs {
            bounds.lower(deadline);
        }
        if scheduled.rescan_all {
            coverage.since_secs = None;
            bounds.forget();
        } else if let (Some(since), Some(deadline)) = (coverage.since_secs, scheduled.deadline_secs)
        {
            coverage.since_secs = Some(deadline.min(since) - 1.0);
        }
        let out_of_range = start >= coverage.out_of_range_due;
        match self.scan(coverage.since_secs, out_of_range, term).await {
            Ok(scanned) => {
                if let Some(step_secs) =
                    coverage.clock.step(scanned.at_secs, start, scanned.read_at)
                {
                    tracing::debug!(step_secs, "the scan found another time");
                    self.signals.deadlines.rescan_all();
                }
                coverage.since_secs = Some(scanned.at_secs - OVERLAP_SECS);
                if out_of_range {
                    coverage.out_of_range_due = start + self.interval;
                }
                let now_secs = scanned.now_secs();
                let limit = match term.is_cancelled() {
                    true => MAX_SLEEP,
                    false => bounds.publish(&self.store, now_secs).await?,
                };
                let due = coverage.out_of_range_due.min(Instant::now() + limit);
                Ok(self.sleep_after(&scanned, start, due))
            }
            Err(error) => {
                if scheduled.rescan_all {
                    self.signals.deadlines.rescan_all();
                }
                Err(error)
            }
        }
    }

    async fn scan(
        &self,
        since_secs: Option<f64>,
        out_of_range: bool,
        term: &Term,
    ) -> Result<Scanned, Error> {
        let due = self.store.due(since_secs, out_of_range).await?;
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        self.metrics
            .runs
            .with_label_values(&["running"])
            .set(due.running as f64);
        let started = Instant::now();
        for batch in due.runs.chunks(MAX_BATCH) {
            if term.is_cancelled() {
                break;
            }
            self.apply(batch, &due, started).await?;
        }
        Ok(Scanned {
            at_secs: due.at_secs,
            read_at: started,
            next_deadline_secs: due.next_deadline_secs,
        })
    }

    async fn apply(
        &self,
        batch: &[(RunKey, f64)],
        due: &Due,
        started: Instant,
    ) -> Result<(), Error> {
        let keys: Vec<RunKey> = batch.iter().map(|(key, _)| key.clone()).collect();
        let applied = self.store.apply(&keys).await?;
        let deadlines: HashMap<&RunKey, f64> = batch
            .iter()
            .map(|(key, deadline)| (key, *deadline))
            .collect();
        let now_secs = due.at_secs + started.elapsed().as_secs_f64();
        for change in &applied.changes {
            if let Some(deadline) = deadlines.get(&change.key) {
                self.metrics
                    .sweep_lag_seconds
                    .observe((now_secs - deadline).max(0.0));
            }
        }
        self.ui.add(&applied.changes);
        applied.report(&self.signals, &self.metrics);
        Ok(())
    }

    fn sleep_after(&self, scanned: &Scanned, start: Instant, next_due: Instant) -> Sleep {
        let took = start.elapsed();
        self.metrics
            .sweep_duration_seconds
            .observe(took.as_secs_f64());
        let now_secs = scanned.now_secs();
        let at_least = (took * SHARE_PARTS).clamp(MIN_SLEEP, MAX_DELAY);
        let longest = next_due
            .saturating_duration_since(Instant::now())
            .min(
                self.cutoff
                    .saturating_sub(FRESH_INSERT)
                    .max(MIN_CUTOFF_SLEEP),
            )
            .max(at_least);
        let at_most = scanned
            .next_deadline_secs
            .map_or(longest, |deadline| until(deadline, now_secs))
            .clamp(at_least, longest);
        Sleep {
            at_least,
            at_most,
            now_secs,
        }
    }

    /// Sleeps, but no longer than until a deadline that is scheduled meanwhile, or the end of the
    /// term.
    async fn rest(&self, sleep: &Sleep, term: &Term) {
        let start = Instant::now();
        let mut end = start + sleep.at_most;
        loop {
            tokio::select! {
                () = term.cancelled() => return,
                () = tokio::time::sleep_until(end.into()) => return,
                () = self.signals.deadlines.changed() => {
                    let scheduled = self.signals.deadlines.peek();
                    let earliest = start + sleep.at_least;
                    if scheduled.rescan_all {
                        end = end.min(earliest);
                    }
                    if let Some(deadline) = scheduled.deadline_secs {
                        end = end.min((start + until(deadline, sleep.now_secs)).max(earliest));
                    }
                }
            }
        }
    }
}

/// One scan.
struct Scanned {
    /// The database's clock, seconds since the epoch.
    at_secs: f64,
    /// The same moment by the local clock.
    read_at: Instant,
    next_deadline_secs: Option<f64>,
}

impl Scanned {
    /// The database's clock now, seconds since the epoch.
    fn now_secs(&self) -> f64 {
        self.at_secs + self.read_at.elapsed().as_secs_f64()
    }
}

struct Sleep {
    at_least: Duration,
    at_most: Duration,
    /// The database's clock when the sleep began, seconds since the epoch.
    now_secs: f64,
}

impl Sleep {
    /// A wait that no deadline shortens.
    fn exactly(wait: Duration) -> Self {
        Self {
            at_least: wait,
            at_most: wait,
            now_secs: 0.0,
        }
    }
}

fn until(deadline_secs: f64, now_secs: f64) -> Duration {
    Duration::try_from_secs_f64((deadline_secs - now_secs).max(0.0))
        .unwrap_or(MAX_SLEEP)
        .min(MAX_SLEEP)
        + AFTER_DEADLINE
}
