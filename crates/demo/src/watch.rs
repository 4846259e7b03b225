//! Watches the daemon from outside: counts, rates, lags, and rows that differ from the definition
//! at that moment.
//!
//! Owns the comparison. A row that differs is *pending* if its event is in the queue in the same
//! snapshot, or its deadline passed less than [`PENDING`] ago; any other is *drift*. Has
//! connections and metrics of its own, so that it does not change what the daemon reports. Called
//! by [`crate::demo`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use status_indexer::error::Error;
use status_indexer::metrics::{Lags, Metrics};
use status_indexer::pg::name_of;
use status_indexer::scan::{BATCH, Batches, Handler, Scan};
use status_indexer::status::{RunKey, Status};
use status_indexer::store::{Compared, Detail, Difference, Explained, Store};
use testkit::clients::traffic::Written;
use tokio_util::sync::CancellationToken;

/// How long a sweep may take: a status whose deadline passed longer ago is late.
pub(crate) const PENDING: Duration = Duration::from_secs(1);

/// Rates and lags are measured over this time.
const WINDOW: Duration = Duration::from_secs(10);

/// Comparisons take at most one part in this many of the time.
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

/// All runs compared with the definition, once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Comparison {
    /// Runs compared.
    pub(crate) compared: i64,
    /// Those that differ, and whose event or deadline is pending.
    pub(crate) pending: usize,
    /// Those that differ without such an explanation.
    pub(crate) drift: Vec<Difference>,
}

/// A finished run whose stored status is not the one that its client must expect.
#[derive(Debug)]
pub(crate) struct Unexpected {
    /// The run.
    pub(crate) key: RunKey,
    /// What is stored; nothing where the run is missing.
    pub(crate) stored: String,
    /// What its client expects.
    pub(crate) expected: &'static str,
}

impl Handler for Comparison {
    async fn handle(&mut self, batch: &Compared) -> Result<i64, Error> {
        self.compared += batch.compared;
        for run in &batch.differences {
            match run.classify(PENDING) {
                Explained::PendingEvent | Explained::PassedDeadline => self.pending += 1,
                Explained::OverdueDeadline | Explained::Drift => self.drift.push(run.clone()),
            }
        }
        Ok(0)
    }
}

/// The values that the view shows, at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    /// Runs by stored status, in the order of [`Status::ALL`].
    pub(crate) counts: [i64; 3],
    /// Whether the column is valid; until then no row counts as drift.
    pub(crate) valid: bool,
    /// Rows in the queue.
    pub(crate) waiting: i64,
    /// Writes of the clients per second.
    pub(crate) writes_per_sec: f64,
    /// Heartbeats per second.
    pub(crate) heartbeats_per_sec: f64,
    /// New runs per second.
    pub(crate) runs_per_sec: f64,
    /// Events per second.
    pub(crate) events_per_sec: f64,
    /// Statuses written per second.
    pub(crate) transitions_per_sec: f64,
    /// Event lags of the last seconds.
    pub(crate) event_lag: Lags,
    /// Sweep lags of the last seconds.
    pub(crate) sweep_lag: Lags,
    /// The last comparison; none before the column is valid.
    pub(crate) comparison: Option<Comparison>,
}

/// What was observed over the whole time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Record {
    /// Comparisons of all runs with the definition.
    pub(crate) comparisons: u32,
    /// The most rows that were pending at once.
    pub(crate) most_pending: usize,
    /// The most rows of drift at once.
    pub(crate) most_drift: usize,
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
pub(crate) struct Watch {
    store: Store,
    metrics: Metrics,
    written: Arc<Written>,
    samples: VecDeque<Sample>,
    compare_due: Instant,
    latest: Snapshot,
    record: Record,
}

impl Watch {
    /// Watches this database, the daemon that counts in `metrics`, and the clients.
    pub(crate) fn new(store: Store, metrics: Metrics, written: Arc<Written>) -> Self {
        Self {
            store,
            metrics,
            written,
            samples: VecDeque::new(),
            compare_due: Instant::now(),
            latest: Snapshot::default(),
            record: Record::default(),
        }
    }

    /// What was observed over the whole time.
    pub(crate) fn record(&self) -> Record {
        self.record
    }

    /// The present state. If the database does not answer, the previous values stay.
    pub(crate) async fn snapshot(&mut self) -> &Snapshot {
        self.measure();
        if let Err(error) = self.query().await {
            tracing::debug!(
                error = status_indexer::error::chain(&error),
                "cannot read the state"
            );
        }
        &self.latest
    }

    /// Compares all runs with the definition.
    ///
    /// # Errors
    /// If a call fails.
    pub(crate) async fn compare_all(&self) -> Result<Comparison, Error> {
        let mut comparison = Comparison::default();
        let batches = Batches::after(&self.store, None, BATCH, Detail::Reasons);
        Scan::new(batches)
            .run(&CancellationToken::new(), &mut comparison)
            .await?;
        Ok(comparison)
    }

    /// Whether nothing is pending: the queue is empty, no row differs, and no deadline falls due
    /// within `margin`.
    ///
    /// # Errors
    /// If a call fails.
    pub(crate) async fn settled(&self, margin: Duration) -> Result<bool, Error> {
        let (waiting, _) = self.store.queue_depth().await?;
        if waiting > 0 || !self.store.load_state().await?.valid {
            return Ok(false);
        }
        let ahead = self.store.due(Some(f64::INFINITY), false).await?;
        let near = ahead
            .next_deadline_secs
            .is_some_and(|deadline| deadline - ahead.at_secs < margin.as_secs_f64());
        if near {
            return Ok(false);
        }
        let comparison = self.compare_all().await?;
        Ok(comparison.pending == 0 && comparison.drift.is_empty())
    }

    /// The finished runs whose stored status is not the one that their clients must expect, without
    /// asking the definition. Meaningful only when nothing is pending.
    ///
    /// # Errors
    /// If the call fails.
    pub(crate) async fn unexpected(&self) -> Result<Vec<Unexpected>, Error> {
        let rows = self
            .store
            .db()
            .query(STORED, &[], Duration::from_secs(30))
            .await?;
        let mut stored = std::collections::HashMap::new();
        for row in &rows {
            let key = RunKey {
                flow_id: read(row, 0, STORED)?,
                run_number: read(row, 1, STORED)?,
            };
            stored.insert(key, read::<String>(row, 2, STORED)?);
        }
        let runs = self.written.finished().into_iter().map(|run| {
            let key = RunKey {
                flow_id: run.flow,
                run_number: run.number,
            };
            Unexpected {
                stored: stored.remove(&key).unwrap_or_default(),
                key,
                expected: run.expected.as_str(),
            }
        });
        Ok(runs.filter(|run| run.stored != run.expected).collect())
    }

    /// Updates what needs no database.
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
        self.latest.runs_per_sec = rate(now.runs, then.runs);
        self.latest.heartbeats_per_sec = rate(now.heartbeats, then.heartbeats);
        self.latest.writes_per_sec = rate(now.writes, then.writes);
        self.latest.events_per_sec = rate(now.events, then.events);
        self.latest.transitions_per_sec = rate(now.transitions, then.transitions);
        self.latest.event_lag = now.event_lag.since(&then.event_lag);
        self.latest.sweep_lag = now.sweep_lag.since(&then.sweep_lag);
        self.samples.push_back(now);
    }

    async fn query(&mut self) -> Result<(), Error> {
        for row in &self
            .store
            .db()
            .query(COUNT, &[], Duration::from_secs(5))
            .await?
        {
            let status: String = read(row, 0, COUNT)?;
            let at = Status::ALL.iter().position(|one| one.as_str() == status);
            if let Some(at) = at {
                self.latest.counts[at] = read(row, 1, COUNT)?;
            }
        }
        (self.latest.waiting, _) = self.store.queue_depth().await?;
        let start = Instant::now();
        if start < self.compare_due {
            return Ok(());
        }
        self.latest.valid = self.store.load_state().await?.valid;
        if !self.latest.valid {
            self.latest.comparison = None;
            return Ok(());
        }
        let comparison = self.compare_all().await?;
        for difference in comparison.drift.iter().take(3) {
            tracing::warn!(
                run.flow_id = difference.key.flow_id,
                run.run_number = difference.key.run_number,
                stored = difference.stored.as_str(),
                expected = difference.expected.as_str(),
                reason = difference.reason.as_str(),
                deadline_distance_secs = difference.deadline_distance,
                "a row differs from the definition, and no pending event or deadline explains it"
            );
        }
        self.compare_due = start + COMPARE_INTERVAL.max(start.elapsed() * SHARE_PARTS);
        self.record.comparisons += 1;
        self.record.most_pending = self.record.most_pending.max(comparison.pending);
        self.record.most_drift = self.record.most_drift.max(comparison.drift.len());
        self.latest.comparison = Some(comparison);
        Ok(())
    }
}

/// Statuses written so far.
pub(crate) fn transitions(metrics: &Metrics) -> u64 {
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
