//! What was written to one flow, and what its runs' statuses must therefore be.
//!
//! Owns the other half of every comparison: it is kept from the steps, not read from the database,
//! and judged by the model, not by the indexer's own definition. Called with each write that was
//! committed.

use std::collections::BTreeMap;

use super::step::{Change, Write};
use crate::model::{Evidence, MICROS, Row, Value, Verdict};

/// A new run whose heartbeat is within five seconds of the clock is taken for fresh, and no trigger
/// tells of it. The clock has gone on between the trigger's look and ours.
const TAKEN_FOR_FRESH: u64 = 7;

/// The flow as it must be.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Heartbeats by run.
    pub(crate) runs: BTreeMap<i32, Option<i64>>,
    /// Metadata rows by id, each with its run, which need not exist.
    pub(crate) rows: BTreeMap<i64, (i32, Row)>,
    /// Whether something was written that no trigger told of: what follows from it is for the walk
    /// over all runs to find.
    pub(crate) unheard: bool,
}

impl Ledger {
    /// How many rows the write touches in the database.
    pub(crate) fn touches(&self, write: &Write) -> usize {
        match write {
            Write::Run { run, .. } => usize::from(!self.runs.contains_key(run)),
            Write::Remove { run }
            | Write::Heartbeat { run, .. }
            | Write::Tag { run }
            | Write::Edit { run, .. } => usize::from(self.runs.contains_key(run)),
            Write::Evidence { .. } => 1,
            Write::Change { id, .. } | Write::Erase { id } => {
                usize::from(self.rows.contains_key(id))
            }
            Write::Clear { run } => self.rows.values().filter(|(of, _)| of == run).count(),
        }
    }

    /// Enters a write that touched something, with the heartbeat that it left, where it left one.
    pub(crate) fn enter(&mut self, write: &Write, beat: Option<i64>, now_secs: i64) {
        match write {
            Write::Run { run, .. } => {
                self.runs.insert(*run, beat);
                let fresh = beat.is_some_and(|beat| beat.abs_diff(now_secs) <= TAKEN_FOR_FRESH);
                // Evidence from before its run.
                self.unheard |= fresh && self.rows.values().any(|(of, _)| of == run);
            }
            Write::Remove { run } => {
                self.runs.remove(run);
            }
            Write::Heartbeat { run, .. } => {
                self.runs.insert(*run, beat);
            }
            Write::Tag { .. } => {}
            Write::Edit { .. } => self.unheard = true,
            Write::Evidence {
                id,
                run,
                step,
                field,
                value,
                ts_ms,
            } => {
                let row = Row {
                    id: *id,
                    step_name: (*step).to_owned(),
                    task_id: 1,
                    field_name: (*field).to_owned(),
                    value: Value::Text((*value).to_owned()),
                    ts_ms: *ts_ms,
                };
                self.rows.insert(*id, (*run, row));
            }
            Write::Change { id, change } => {
                if let Some((run, row)) = self.rows.get_mut(id) {
                    match change {
                        Change::Value(value) => row.value = Value::Text((*value).to_owned()),
                        Change::Time(ts_ms) => row.ts_ms = *ts_ms,
                        Change::Run(other) => *run = *other,
                        Change::Step(step) => (*step).clone_into(&mut row.step_name),
                        Change::Field(field) => (*field).clone_into(&mut row.field_name),
                    }
                }
            }
            Write::Erase { id } => {
                self.rows.remove(id);
            }
            Write::Clear { run } => self.rows.retain(|_, (of, _)| of != run),
        }
    }

    /// All that is known of a run.
    pub(crate) fn evidence(&self, run: i32) -> Evidence {
        let rows = self.rows.values().filter(|(of, _)| *of == run);
        Evidence {
            rows: rows.map(|(_, row)| row.clone()).collect(),
            heartbeat_secs: self.runs.get(&run).copied().flatten(),
        }
    }

    /// The model's verdict on a run at an instant, in microseconds.
    pub(crate) fn judge(&self, run: i32, at: i128, cutoff: i64) -> Verdict {
        self.evidence(run).judge(at, cutoff)
    }

    /// The moments, in microseconds, at which time alone may change one of its runs.
    pub(crate) fn deadlines(&self, cutoff: i64) -> impl Iterator<Item = i128> {
        let beats = self.runs.values().flatten().copied().map(i128::from);
        beats.flat_map(move |beat| {
            [beat - i128::from(cutoff), beat + i128::from(cutoff)].map(|secs| secs * MICROS)
        })
    }
}
