//! The conditions under which statuses do not follow their events.
//!
//! Owns the one list. `/readyz`, the status page and the gauge `status_indexer_unhealthy` read the same
//! conditions; the daemon's sampler sets them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A reason why statuses may be wrong or late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// The daemon waits for something before it can start.
    NotStarted,
    /// The database does not answer.
    DatabaseUnreachable,
    /// The column is not valid.
    ColumnInvalid,
    /// A trigger is missing, disabled or replaced: events are lost.
    TriggersMissing,
    /// The role does not see every row, or the server does not show the newest rows.
    RowsHidden,
    /// The order of an index may be wrong, because a collation changed.
    CollationChanged,
    /// No daemon works.
    NoLeader,
    /// Events have been in the queue for too long.
    EventsDelayed,
    /// A stage of this daemon fails repeatedly.
    StageFailing,
}

impl Condition {
    /// Every condition.
    pub const ALL: [Self; 9] = [
        Self::NotStarted,
        Self::DatabaseUnreachable,
        Self::ColumnInvalid,
        Self::TriggersMissing,
        Self::RowsHidden,
        Self::CollationChanged,
        Self::NoLeader,
        Self::EventsDelayed,
        Self::StageFailing,
    ];

    /// Its name in metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotStarted => "not_started",
            Self::DatabaseUnreachable => "database_unreachable",
            Self::ColumnInvalid => "column_invalid",
            Self::TriggersMissing => "triggers_missing",
            Self::RowsHidden => "rows_hidden",
            Self::CollationChanged => "collation_changed",
            Self::NoLeader => "no_leader",
            Self::EventsDelayed => "events_delayed",
            Self::StageFailing => "stage_failing",
        }
    }
}

/// The conditions that hold, each with its reason. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Conditions(Arc<Mutex<BTreeMap<Condition, String>>>);

impl Conditions {
    /// Sets or clears a condition; returns the reason before, if it held.
    pub(super) fn set(&self, condition: Condition, reason: Option<&str>) -> Option<String> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match reason {
            Some(reason) => held.insert(condition, reason.to_owned()),
            None => held.remove(&condition),
        }
    }

    /// All that hold.
    pub(super) fn all(&self) -> Vec<(Condition, String)> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter()
            .map(|(condition, reason)| (*condition, reason.clone()))
            .collect()
    }
}
