//! Watches the daemon at work from outside: counts, rates, lags, and rows that differ from the
//! definition at that moment.
//!
//! Owns the verdict. A row that differs is *in flight* if its event waits in the queue in the same
//! snapshot, or its deadline passed less than [`IN_FLIGHT`] ago; any other is *wrong*. Has its own
//! connections and counts in nobody's metrics. Called by the demo.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::traffic::Written;
use crate::error::Error;
use crate::metrics::{Lags, Metrics};
use crate::pg::{Db, name_of};
use crate::status::{RunKey, Status};
use crate::store::runs::{Detail, Difference, compare, due};
use crate::store::{queue, state};

/// What a sweep may take: a deadline that passed longer ago is late.
pub const IN_FLIGHT: Duration = Duration::from_secs(1);

/// Rates and lags are those of so long.
const WINDOW: Duration = Duration::from_secs(10);

/// How many runs one comparison's step takes.
const STEP: i32 = 2_000;

/// Comparing may take one part of the time in so many.
const SHARE_PARTS: u32 = 20;

/// The shortest time between two comparisons.
const COMPARE_INTERVAL: Duration = Duration::from_secs(1);

const COUNT: &str = "\
-- demo.count
select run_status, count(*)
  from public.runs_v3
 group by run_status";

const STORED: &str = "\
-- demo.stored
select flow_id, run_number::int8, run_status
  from public.runs_v3";

/// All runs held against the definition, once.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Runs looked at.
    pub compared: i64,
    /// Those that differ and are on their way.
    pub in_flight: usize,
    /// Those that differ for no reason.
    pub wrong: Vec<Difference>,
}

impl Verdict {
    fn add(&mut self, difference: Difference) {
        let distance = difference.deadline_distance;
        let near = distance.is_some_and(|secs| secs <= IN_FLIGHT.as_secs_f64());
        if difference.queued || (near && difference.is_of_time()) {
            self.in_flight += 1;
        } else {
            self.wrong.push(difference);
        }
    }
}

/// What is shown of one moment.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    /// Runs by stored status, in the order of [`Status::ALL`].
    pub counts: [i64; 3],
    /// Whether the column is to be believed; until then no row is called wrong.
    pub believable: bool,
    /// Rows in the queue.
    pub waiting: i64,
    /// Writes of the clients a second.
    pub writes_per_sec: f64,
    /// Heartbeats a second.
    pub heartbeats_per_sec: f64,
    /// New runs a second.
    pub runs_per_sec: f64,
    /// Events a second.
    pub events_per_sec: f64,
    /// Statuses written a second.
    pub transitions_per_sec: f64,
    /// Event lags of the last seconds.
    pub event_lag: Lags,
    /// Sweep lags of the last seconds.
    pub sweep_lag: Lags,
    /// The last comparison; none before the column is believable.
    pub verdict: Option<Verdict>,
}

impl Sight {
    /// All runs.
    #[must_use]
    pub fn runs(&self) -> i64 {
        self.counts.iter().sum()
    }
}

/// What was seen over the whole time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Record {
    /// Comparisons of all runs with the definition.
    pub looks: u32,
    /// The most rows that were in flight at once.
    pub most_in_flight: usize,
    /// The most rows that were wrong at once.
    pub most_wrong: usize,
}

/// Counters at one moment.
#[derive(Debug, Clone)]
struct Sample {
    at: Instant,
    runs: u64,
    heartbeats: u64,
    writes: u64,
    events: u64,
    transitions: u64,
    event_lag: Lags,
    sweep_lag: Lags,
}

/// See the module.
#[derive(Debug)]
pub struct Watch {
    db: Db,
    metrics: Metrics,
    written: Arc<Written>,
    samples: VecDeque<Sample>,
    compare_due: Instant,
    sight: Sight,
    record: Record,
}

impl Watch {
    /// Watches this database, the daemon that counts in `metrics`, and the clients.
    #[must_use]
    pub fn new(db: Db, metrics: Metrics, written: Arc<Written>) -> Self {
        Self {
            db,
            metrics,
            written,
            samples: VecDeque::new(),
            compare_due: Instant::now(),
            sight: Sight::default(),
            record: Record::default(),
        }
    }

    /// What was seen over the whole time.
    #[must_use]
    pub fn record(&self) -> Record {
        self.record
    }

    /// Looks, and returns what is seen. Where the database does not answer, the last sight stays.
    pub async fn look(&mut self) -> &Sight {
        self.measure();
        if let Err(error) = self.ask().await {
            tracing::debug!(error = crate::error::chain(&error), "nothing was seen");
        }
        &self.sight
    }

    /// All runs held against the definition now.
    ///
    /// # Errors
    /// If a call fails.
    pub async fn judge(&self) -> Result<Verdict, Error> {
        let mut verdict = Verdict::default();
        let mut position: Option<RunKey> = None;
        loop {
            let step = compare(&self.db, position.as_ref(), STEP, Detail::Reasons).await?;
            verdict.compared += step.compared;
            for difference in step.differences {
                verdict.add(difference);
            }
            let Some(last) = step.last else {
                return Ok(verdict);
            };
            position = Some(last);
        }
    }

    /// Whether nothing is on its way: the queue is empty, no row differs, and time alone changes
    /// nothing within `margin`.
    ///
    /// # Errors
    /// If a call fails.
    pub async fn quiet(&self, margin: Duration) -> Result<bool, Error> {
        let (waiting, _) = queue::waiting(&self.db).await?;
        if waiting > 0 || !state::load(&self.db).await?.believable {
            return Ok(false);
        }
        let ahead = due(&self.db, Some(f64::INFINITY), false).await?;
        let near = ahead
            .next_deadline_secs
            .is_some_and(|deadline| deadline - ahead.at_secs < margin.as_secs_f64());
        if near {
            return Ok(false);
        }
        let verdict = self.judge().await?;
        Ok(verdict.in_flight == 0 && verdict.wrong.is_empty())
    }

    /// The finished lives whose stored status is not the one that their clients must expect: the
    /// run, what is stored, what is expected. Asks no definition. Only at a moment of quiet.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn unexpected(&self) -> Result<Vec<(RunKey, String, Status)>, Error> {
        let rows = self.db.query(STORED, &[], Duration::from_secs(30)).await?;
        let mut stored = std::collections::HashMap::new();
        for row in &rows {
            let key = RunKey {
                flow_id: read(row, 0, STORED)?,
                run_number: read(row, 1, STORED)?,
            };
            stored.insert(key, read::<String>(row, 2, STORED)?);
        }
        let ended = self.written.ended().into_iter();
        Ok(ended
            .filter_map(|(key, expected)| {
                let status = stored.remove(&key).unwrap_or_default();
                (status != expected.as_str()).then_some((key, status, expected))
            })
            .collect())
    }

    /// What needs no database.
    fn measure(&mut self) {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let now = Sample {
            at: Instant::now(),
            runs: count(&self.written.runs),
            heartbeats: count(&self.written.heartbeats),
            writes: self.written.total(),
            events: self.metrics.events_total.get(),
            transitions: transitions(&self.metrics),
            event_lag: Lags::of(&self.metrics.event_lag_seconds),
            sweep_lag: Lags::of(&self.metrics.sweep_lag_seconds),
        };
        while self.samples.len() > 1 && now.at - self.samples[0].at > WINDOW {
            self.samples.pop_front();
        }
        let then = self.samples.front().unwrap_or(&now);
        let elapsed = (now.at - then.at).as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "counts of ten seconds")]
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / elapsed;
        self.sight.runs_per_sec = rate(now.runs, then.runs);
        self.sight.heartbeats_per_sec = rate(now.heartbeats, then.heartbeats);
        self.sight.writes_per_sec = rate(now.writes, then.writes);
        self.sight.events_per_sec = rate(now.events, then.events);
        self.sight.transitions_per_sec = rate(now.transitions, then.transitions);
        self.sight.event_lag = now.event_lag.since(&then.event_lag);
        self.sight.sweep_lag = now.sweep_lag.since(&then.sweep_lag);
        self.samples.push_back(now);
    }

    async fn ask(&mut self) -> Result<(), Error> {
        for row in &self.db.query(COUNT, &[], Duration::from_secs(5)).await? {
            let status: String = read(row, 0, COUNT)?;
            let at = Status::ALL.iter().position(|one| one.as_str() == status);
            if let Some(at) = at {
                self.sight.counts[at] = read(row, 1, COUNT)?;
            }
        }
        (self.sight.waiting, _) = queue::waiting(&self.db).await?;
        let start = Instant::now();
        if start < self.compare_due {
            return Ok(());
        }
        self.sight.believable = state::load(&self.db).await?.believable;
        if !self.sight.believable {
            self.sight.verdict = None;
            return Ok(());
        }
        let verdict = self.judge().await?;
        for difference in verdict.wrong.iter().take(3) {
            tracing::warn!(
                run.flow_id = difference.key.flow_id,
                run.run_number = difference.key.run_number,
                stored = difference.stored.as_str(),
                expected = difference.expected.as_str(),
                reason = difference.reason.as_str(),
                deadline_distance_secs = difference.deadline_distance,
                "a row differs from the definition, and nothing explains it"
            );
        }
        self.compare_due = start + COMPARE_INTERVAL.max(start.elapsed() * SHARE_PARTS);
        self.record.looks += 1;
        self.record.most_in_flight = self.record.most_in_flight.max(verdict.in_flight);
        self.record.most_wrong = self.record.most_wrong.max(verdict.wrong.len());
        self.sight.verdict = Some(verdict);
        Ok(())
    }
}

/// Statuses written so far.
#[must_use]
pub fn transitions(metrics: &Metrics) -> u64 {
    let counted = metrics.counted_transitions();
    counted.iter().map(|(_, count)| count).sum()
}

fn read<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a tokio_postgres::Row,
    at: usize,
    sql: &'static str,
) -> Result<T, Error> {
    row.try_get(at).map_err(|source| Error::Answer {
        statement: name_of(sql),
        source: source.into(),
    })
}
