//! `status_indexer.apply`: the one way to change a status.

use std::time::Duration;

use serde::Deserialize;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::{column, list};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::pg::{BatchSize, Db, LONG, SHORT, name_of};
use crate::status::{Reason, RunKey, Status};

/// How many runs are worth a call; the server's speed decides how many calls they are.
pub const BATCH: usize = BatchSize::MOST;

const APPLY: &str = "\
-- apply.keys
select applied, skipped, changes, invalid, next_deadline, held_secs
  from status_indexer.apply($1, $2, null)";

const MOVE_PENDING: &str = "\
-- apply.flush_pending_list
select status_indexer.flush_pending_list()";

/// A status that was written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Change {
    /// Whose.
    #[serde(flatten)]
    pub key: RunKey,
    /// What was stored before.
    pub from: Status,
    /// What is stored now.
    pub to: Status,
    /// The rule that decided.
    pub reason: Reason,
}

/// A run whose newest `attempt_ok` is no boolean.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Invalid {
    /// Whose.
    #[serde(flatten)]
    pub key: RunKey,
    /// What stands there, up to 80 characters; none where it is JSON's null or a structure.
    pub value: Option<String>,
}

/// What one call did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Applied {
    /// Runs judged.
    pub applied: usize,
    /// Runs put (back) into the queue, because somebody else holds their rows.
    pub skipped: Vec<(String, i64)>,
    /// Statuses written.
    pub changes: Vec<Change>,
    /// Runs with evidence that cannot be read.
    pub invalid: Vec<Invalid>,
    /// The next moment that time alone changes one of these runs, seconds since the epoch.
    pub next_deadline_secs: Option<f64>,
    /// For how long their rows were held, by the server's clock.
    pub held: Duration,
}

impl Applied {
    /// The outcome of both.
    fn add(&mut self, other: Self) {
        self.applied += other.applied;
        self.skipped.extend(other.skipped);
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
        let held_secs: Option<f64> = column(row, statement, "held_secs")?;
        Ok(Self {
            applied: usize::try_from(applied.unwrap_or(0)).unwrap_or(0),
            skipped: list(row, statement, "skipped")?,
            changes: list(row, statement, "changes")?,
            invalid: list(row, statement, "invalid")?,
            next_deadline_secs: column(row, statement, "next_deadline")?,
            // A clock that steps meanwhile tells nothing.
            held: Duration::try_from_secs_f64(held_secs.unwrap_or(0.0)).unwrap_or_default(),
        })
    }

    /// Counts what was done, and logs evidence that cannot be read.
    pub fn observe(&self, metrics: &Metrics) {
        metrics.rows_locked_total.inc_by(self.skipped.len() as u64);
        for change in &self.changes {
            metrics
                .transitions_total
                .with_label_values(&[
                    change.from.as_str(),
                    change.to.as_str(),
                    change.reason.as_str(),
                ])
                .inc();
            tracing::debug!(
                run.flow_id = change.key.flow_id,
                run.run_number = change.key.run_number,
                from = change.from.as_str(),
                to = change.to.as_str(),
                reason = change.reason.as_str(),
                "status written"
            );
        }
        for invalid in &self.invalid {
            metrics.invalid_evidence_total.inc();
            tracing::warn!(
                run.flow_id = invalid.key.flow_id,
                run.run_number = invalid.key.run_number,
                value = invalid.value,
                "attempt_ok of the end step is no boolean; it counts as no evidence"
            );
        }
    }
}

/// Judges the given runs anew, in as many calls as keep the rows free for others.
///
/// # Errors
/// If a call fails; then what the calls before it wrote stays.
pub async fn apply(db: &Db, mut keys: &[RunKey]) -> Result<Applied, Error> {
    let mut all = Applied::default();
    while !keys.is_empty() {
        let (batch, rest) = keys.split_at(db.batch().get().min(keys.len()));
        let applied = apply_batch(db, batch).await?;
        if applied.applied > 0 {
            db.batch().learn(batch.len(), applied.held);
        }
        all.add(applied);
        keys = rest;
    }
    Ok(all)
}

async fn apply_batch(db: &Db, keys: &[RunKey]) -> Result<Applied, Error> {
    let flow_ids: Vec<&str> = keys.iter().map(|key| key.flow_id.as_str()).collect();
    let run_numbers: Vec<i64> = keys.iter().map(|key| key.run_number).collect();
    let row = db
        .query_one(
            APPLY,
            &[
                (&flow_ids, Type::TEXT_ARRAY),
                (&run_numbers, Type::INT8_ARRAY),
            ],
            SHORT,
        )
        .await?;
    Applied::read(&row, name_of(APPLY))
}

/// Brings the runs' GIN indexes up to date while no row is held, so that no batch has to.
///
/// # Errors
/// If the call fails.
pub async fn move_pending(db: &Db) -> Result<(), Error> {
    db.query(MOVE_PENDING, &[], LONG).await.map(drop)
}
