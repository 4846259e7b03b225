//! The backfill: the first complete scan, which makes the column valid.
//!
//! Corrects every run that differs, waits until the events written before its end are applied, and
//! completes only in the generation in which it began, with all triggers enabled. Called by the
//! daemon's reconciler and by the `backfill` command.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use super::{Batches, End, Handler, Pace, Scan};
use crate::error::Error;
use crate::log_limit::LogLimit;
use crate::metrics::Metrics;
use crate::signals::Signals;
use crate::status::{RunKey, Status};
use crate::store::{Applied, Compared, Detail, MAX_BATCH, QueueRows, State, Store};

/// How often the checkpoint is saved: a crash costs a second of comparisons, and the cost of saving
/// is negligible.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

/// Flush the pending lists of the GIN indexes after this many writes (about 100 bytes each; at most
/// 20 ms with eight tags a run).
const FLUSH_AFTER: i64 = 4_000;

/// How often the end of a backfill checks whether earlier events have been applied.
const QUEUE_POLL: Duration = Duration::from_millis(100);

/// The pause after each pass over the whole queue, as a multiple of the time that it took.
const QUEUE_PAUSE_PARTS: u32 = 4;

/// Limits the log lines about waiting for the last runs.
static WAITING: LogLimit = LogLimit::new();

/// A backfill.
#[derive(Debug)]
pub struct Backfill<'a> {
    /// The calls into the database.
    pub store: &'a Store,
    /// Runs compared by one statement.
    pub batch_size: i32,
    /// How fast the scan goes.
    pub pace: Pace,
    /// Receives wakeups and deadlines.
    pub signals: &'a Signals,
    /// The metrics to count in.
    pub metrics: &'a Metrics,
}

/// The progress of a backfill.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Runs compared, including those before it was resumed.
    pub compared: i64,
    /// Runs corrected, including those before it was resumed.
    pub corrected: i64,
    /// Statuses written since it was started or resumed, by status.
    pub written: BTreeMap<Status, i64>,
}

/// How a backfill ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All runs were compared, and the column is valid.
    Complete,
    /// Another backfill made the column valid.
    Overtaken,
    /// The column or its parameters changed, or a trigger is missing: it must begin again.
    Outdated,
    /// It was stopped; it can be resumed.
    Stopped,
}

impl Backfill<'_> {
    /// Compares all runs from the checkpoint on and makes the column valid. `report` receives the
    /// progress after each batch.
    ///
    /// # Errors
    /// If a call fails; the backfill can be resumed.
    pub async fn run(
        self,
        state: &State,
        stop: &CancellationToken,
        report: impl FnMut(&Progress) + Send,
    ) -> Result<Outcome, Error> {
        self.store.enqueue_not_sendable().await?;
        let mut correction = Correction {
            backfill: &self,
            progress: Progress {
                compared: state.scan_compared,
                corrected: state.scan_corrected,
                ..Progress::default()
            },
            unflushed: 0,
            report,
        };
        let position = state.scan_position.clone();
        let batches = Batches::after(self.store, position, self.batch_size, Detail::Keys);
        let end = Scan::new(batches)
            .at(self.pace.clone())
            .with_checkpoint(self.store, state, CHECKPOINT_INTERVAL)
            .run(stop, &mut correction)
            .await?;
        match end {
            End::Complete { at_secs } => {
                self.store.flush_pending_list().await?;
                self.complete(state.generation, at_secs, stop).await
            }
            End::Stopped => Ok(Outcome::Stopped),
            End::Outdated => Ok(Outcome::Outdated),
            End::Overtaken => Ok(Outcome::Overtaken),
        }
    }

    /// Waits until the events written before the end have been applied, among them runs that were
    /// locked. Drains the queue too, because no daemon may be running. Then makes the column valid.
    async fn complete(
        &self,
        generation: i64,
        end_secs: f64,
        stop: &CancellationToken,
    ) -> Result<Outcome, Error> {
        let mut rows = QueueRows::default();
        let mut start = Instant::now();
        let mut keeps = false;
        while !self.store.queue_is_clear_before(end_secs).await? {
            if stop.is_cancelled() {
                return Ok(Outcome::Stopped);
            }
            self.signals.wakeup.notify();
            let drained = self.store.drain(&rows, MAX_BATCH, None).await?;
            drained.applied.count(&self.signals.deadlines, self.metrics);
            keeps |= !drained.kept_ids.is_empty();
            if drained.is_full() {
                rows.after_id = drained.last_id.unwrap_or_default();
                continue;
            }
            if keeps && let Some(suppressed) = WAITING.allow() {
                tracing::info!(
                    suppressed,
                    "the backfill waits for runs that other transactions lock, or that the server \
                     refuses to write"
                );
            }
            let pause = QUEUE_POLL.max(start.elapsed() * QUEUE_PAUSE_PARTS);
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
            (rows.after_id, start, keeps) = (0, Instant::now(), false);
        }
        if !self.store.complete_scan(generation).await? {
            // If a trigger is missing, events of runs before the checkpoint may have been lost.
            self.store.restart_backfill(generation).await?;
            return Ok(Outcome::Outdated);
        }
        self.metrics
            .reconcile_last_pass_timestamp_seconds
            .set(end_secs);
        Ok(Outcome::Complete)
    }
}

/// Corrects the runs of each batch that differ.
struct Correction<'a, F> {
    backfill: &'a Backfill<'a>,
    progress: Progress,
    /// Statuses written since the pending lists were last flushed.
    unflushed: i64,
    report: F,
}

impl<F: FnMut(&Progress) + Send> Handler for Correction<'_, F> {
    async fn handle(&mut self, batch: &Compared) -> Result<i64, Error> {
        let metrics = self.backfill.metrics;
        metrics
            .reconciled_total
            .inc_by(u64::try_from(batch.compared).unwrap_or(0));
        batch.refused.iter().for_each(|run| run.count(metrics));
        let written = self.correct(&batch.differing).await?;
        self.progress.compared += batch.compared;
        self.progress.corrected += written;
        (self.report)(&self.progress);
        self.unflushed += written;
        if self.unflushed >= FLUSH_AFTER {
            self.backfill.store.flush_pending_list().await?;
            self.unflushed = 0;
        }
        Ok(written)
    }
}

impl<F> Correction<'_, F> {
    /// Applies the runs in equal batches; returns how many statuses were written.
    async fn correct(&mut self, keys: &[RunKey]) -> Result<i64, Error> {
        let Backfill {
            store,
            pace,
            signals,
            metrics,
            ..
        } = self.backfill;
        let concurrency = pace.concurrency.saturating_sub(1).max(1);
        let shares = keys.len().div_ceil(store.batch().max()).max(concurrency);
        let calls: Vec<_> = keys
            .chunks(keys.len().div_ceil(shares).max(1))
            .map(|keys| store.apply(keys))
            .collect();
        let outcomes: Vec<Applied> = stream::iter(calls)
            .buffer_unordered(concurrency)
            .try_collect()
            .await?;
        let mut written = 0;
        for applied in &outcomes {
            applied.report(signals, metrics);
            for change in &applied.changes {
                *self.progress.written.entry(change.to).or_default() += 1;
                written += 1;
            }
        }
        Ok(written)
    }
}
