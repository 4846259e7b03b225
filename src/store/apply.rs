//! `status_indexer.apply`: the only code that changes a status.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::{Store, column, list};
use crate::error::Error;
use crate::log_limit::LogLimit;
use crate::metrics::Metrics;
use crate::pg::{LONG, SHORT, name_of};
use crate::signals::{Deadlines, Signals};
use crate::status::{Reason, RunKey, Status};

const APPLY: &str = "\
-- apply.keys
select applied, jsonb_array_length(skipped) as skipped, changes, invalid, next_deadline, held_secs
  from status_indexer.apply($1, $2, null)";

const APPLY_EACH: &str = "\
-- apply.each
select applied, jsonb_array_length(skipped) as skipped, changes, invalid, next_deadline, held_secs, refused
  from status_indexer.apply_each($1, $2, null)";

const FLUSH_PENDING_LIST: &str = "\
-- apply.flush_pending_list
select status_indexer.flush_pending_list()";

/// Limits the log lines about malformed evidence: a client that writes it for every run must not
/// fill the log.
static INVALID_EVIDENCE: LogLimit = LogLimit::new();

/// The same for runs whose status the server refuses.
static REFUSED: LogLimit = LogLimit::new();

/// A run that was written: its status has changed, or when it ended.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Change {
    /// The run.
    #[serde(flatten)]
    pub key: RunKey,
    /// The status before.
    pub from: Status,
    /// The status now.
    pub to: Status,
    /// The rule that decided.
    pub reason: Reason,
}

/// A run whose newest `attempt_ok` is not a valid boolean.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct InvalidEvidence {
    /// The run.
    #[serde(flatten)]
    pub key: RunKey,
    /// The value as text, up to 80 characters; none for JSON's null and for structures.
    pub value: Option<String>,
}

/// A run that the server refuses to evaluate or to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRun {
    /// The run.
    #[serde(flatten)]
    pub key: RunKey,
    /// The server's code.
    pub sqlstate: String,
    /// The server's message, up to 200 characters.
    pub error: String,
}

/// The outcome of one or several calls.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Applied {
    /// Runs evaluated.
    pub applied: usize,
    /// Runs left to the queue, because other transactions hold their row locks.
    pub skipped: usize,
    /// Runs left to the queue, because the server refuses them.
    pub refused: Vec<RefusedRun>,
    /// Runs written.
    pub changes: Vec<Change>,
    /// Runs whose evidence cannot be read.
    pub invalid: Vec<InvalidEvidence>,
    /// The next moment at which time alone changes one of these runs, seconds since the epoch.
    pub next_deadline_secs: Option<f64>,
    /// For how long the row locks were held, by the server's clock.
    pub held: Duration,
}

impl Applied {
    /// Adds the outcome of another call.
    fn add(&mut self, other: Self) {
        self.applied += other.applied;
        self.skipped += other.skipped;
        self.refused.extend(other.refused);
        self.changes.extend(other.changes);
        self.invalid.extend(other.invalid);
        self.next_deadline_secs = match (self.next_deadline_secs, other.next_deadline_secs) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        self.held += other.held;
    }

    pub(super) fn read(row: &Row, statement: &'static str) -> Result<Self, Error> {
        let applied: Option<i32> = column(row, statement, "applied")?;
        let skipped: Option<i32> = column(row, statement, "skipped")?;
        let held_secs: Option<f64> = column(row, statement, "held_secs")?;
        Ok(Self {
            applied: usize::try_from(applied.unwrap_or(0)).unwrap_or(0),
            skipped: usize::try_from(skipped.unwrap_or(0)).unwrap_or(0),
            refused: refused(row, statement)?,
            changes: list(row, statement, "changes")?,
            invalid: list(row, statement, "invalid")?,
            next_deadline_secs: column(row, statement, "next_deadline")?,
            // Negative where the clock stepped back meanwhile.
            held: Duration::try_from_secs_f64(held_secs.unwrap_or(0.0)).unwrap_or_default(),
        })
    }

    /// Reports the outcome: counts and logs it, schedules the next deadline, and wakes the worker
    /// for runs that were put into the queue.
    pub fn report(&self, signals: &Signals, metrics: &Metrics) {
        self.count(&signals.deadlines, metrics);
        if self.skipped > 0 || !self.refused.is_empty() {
            signals.wakeup.notify();
        }
    }

    /// The same without the wakeup, for the worker itself, which paces its own retries.
    pub fn count(&self, deadlines: &Deadlines, metrics: &Metrics) {
        metrics.rows_locked_total.inc_by(self.skipped as u64);
        self.changes.iter().for_each(|change| change.count(metrics));
        self.refused.iter().for_each(|run| run.count(metrics));
        self.invalid.iter().for_each(|run| run.count(metrics));
        if let Some(deadline) = self.next_deadline_secs {
            deadlines.schedule(deadline);
        }
    }
}

impl Change {
    fn count(&self, metrics: &Metrics) {
        // Only when the run ended has changed.
        if self.from == self.to {
            return;
        }
        let labels = [self.from.as_str(), self.to.as_str(), self.reason.as_str()];
        metrics.transitions_total.with_label_values(&labels).inc();
        tracing::debug!(
            run.flow_id = self.key.flow_id,
            run.run_number = self.key.run_number,
            from = self.from.as_str(),
            to = self.to.as_str(),
            reason = self.reason.as_str(),
            "status written"
        );
    }
}

/// The refused runs of an answer that may list some.
pub(super) fn refused(row: &Row, statement: &'static str) -> Result<Vec<RefusedRun>, Error> {
    let mut columns = row.columns().iter();
    if columns.any(|column| column.name() == "refused") {
        list(row, statement, "refused")
    } else {
        Ok(Vec::new())
    }
}

impl RefusedRun {
    /// Counts and logs it.
    pub(crate) fn count(&self, metrics: &Metrics) {
        metrics.rows_refused_total.inc();
        let Some(suppressed) = REFUSED.allow() else {
            return;
        };
        tracing::error!(
            suppressed,
            run.flow_id = self.key.flow_id,
            run.run_number = self.key.run_number,
            sqlstate = self.sqlstate,
            error = self.error,
            "the server refuses to evaluate or to write a run; it is retried, and other runs go on"
        );
    }
}

impl InvalidEvidence {
    fn count(&self, metrics: &Metrics) {
        metrics.invalid_evidence_total.inc();
        let Some(suppressed) = INVALID_EVIDENCE.allow() else {
            return;
        };
        tracing::warn!(
            suppressed,
            run.flow_id = self.key.flow_id,
            run.run_number = self.key.run_number,
            value = self.value,
            "attempt_ok of the end step is not a valid boolean; it counts as missing"
        );
    }
}

impl Store {
    /// Evaluates the given runs and writes the statuses that differ, in calls that are small enough
    /// to hold row locks only briefly.
    ///
    /// # Errors
    /// If a call fails; the calls before it stay in effect.
    pub async fn apply(&self, mut keys: &[RunKey]) -> Result<Applied, Error> {
        let mut all = Applied::default();
        while !keys.is_empty() {
            let (batch, rest) = keys.split_at(self.batch.get().min(keys.len()));
            let applied = self.apply_batch(batch).await?;
            if applied.applied > 0 {
                self.batch.learn(batch.len(), applied.held);
            }
            all.add(applied);
            keys = rest;
        }
        Ok(all)
    }

    async fn apply_batch(&self, keys: &[RunKey]) -> Result<Applied, Error> {
        let flow_ids: Vec<&str> = keys.iter().map(|key| key.flow_id.as_str()).collect();
        let run_numbers: Vec<i64> = keys.iter().map(|key| key.run_number).collect();
        let params = [
            (&flow_ids as _, Type::TEXT_ARRAY),
            (&run_numbers as _, Type::INT8_ARRAY),
        ];
        match self.db.query_one(APPLY, &params, SHORT).await {
            Ok(row) => Applied::read(&row, name_of(APPLY)),
            Err(error) if error.may_concern_one_run() => {
                let row = self.db.query_one(APPLY_EACH, &params, SHORT).await?;
                Applied::read(&row, name_of(APPLY_EACH))
            }
            Err(error) => Err(error),
        }
    }

    /// Flushes the pending lists of the runs table's GIN indexes while no row lock is held, so that
    /// no batch has to flush them.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn flush_pending_list(&self) -> Result<(), Error> {
        self.db.query(FLUSH_PENDING_LIST, &[], LONG).await.map(drop)
    }
}
