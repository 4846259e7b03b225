//! The model of one flow: what was written to it, and which statuses its runs must therefore have.
//!
//! Owns the expected side of every comparison: it is built from the steps, not read from the
//! database, and evaluated by the oracle, not by the product's own definition. Called with each
//! write that was committed.

use std::collections::BTreeMap;

use super::step::{Change, Write};
use crate::oracle::{Evidence, Expected, MICROS, Row, Value};

/// No trigger enqueues an event for a new run whose heartbeat is within five seconds of the clock.
/// Two seconds more, because the clock advances between the trigger and this process.
const FRESH_SECS: u64 = 7;

/// The expected rows of a flow.
#[derive(Debug, Default)]
pub struct FlowModel {
    /// Heartbeats by run.
    pub runs: BTreeMap<i32, Option<i64>>,
    /// Metadata rows by id, each with its run, which need not exist.
    pub rows: BTreeMap<i64, (i32, Row)>,
    /// Whether something was written for which no trigger enqueued an event: the reconciler has to
    /// find what follows from it.
    pub bypasses_triggers: bool,
}

impl FlowModel {
    /// How many rows the write affects in the database.
    #[must_use]
    pub fn affected_rows(&self, write: &Write) -> usize {
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

    /// Records a write that affected a row, with the heartbeat that it left, where it left one.
    pub fn record(&mut self, write: &Write, heartbeat: Option<i64>, now_secs: i64) {
        match write {
            Write::Run { run, .. } => {
                self.runs.insert(*run, heartbeat);
                let fresh = heartbeat.is_some_and(|secs| secs.abs_diff(now_secs) <= FRESH_SECS);
                // Evidence from before its run.
                self.bypasses_triggers |= fresh && self.rows.values().any(|(of, _)| of == run);
            }
            Write::Remove { run } => {
                self.runs.remove(run);
            }
            Write::Heartbeat { run, .. } => {
                self.runs.insert(*run, heartbeat);
            }
            Write::Tag { .. } => {}
            Write::Edit { .. } => self.bypasses_triggers = true,
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
    #[must_use]
    pub fn evidence(&self, run: i32) -> Evidence {
        let rows = self.rows.values().filter(|(of, _)| *of == run);
        Evidence {
            rows: rows.map(|(_, row)| row.clone()).collect(),
            heartbeat_secs: self.runs.get(&run).copied().flatten(),
        }
    }

    /// The run's status by the oracle at an instant, in microseconds.
    #[must_use]
    pub fn expected(&self, run: i32, at_micros: i128, cutoff_secs: i64) -> Expected {
        self.evidence(run).evaluate(at_micros, cutoff_secs)
    }

    /// The moments, in microseconds, at which time alone may change one of its runs.
    pub fn deadlines(&self, cutoff_secs: i64) -> impl Iterator<Item = i128> {
        let heartbeats = self.runs.values().flatten().copied().map(i128::from);
        heartbeats.flat_map(move |heartbeat| {
            let cutoff = i128::from(cutoff_secs);
            [heartbeat - cutoff, heartbeat + cutoff].map(|secs| secs * MICROS)
        })
    }
}
