//! A statement of the read API: text, values, and how it is planned.
//!
//! Values of a request are always parameters. The one variable part of a text is the name of the runs' table,
//! which the migration quoted. Executed by [`super::reader`].

use tokio_postgres::types::{ToSql, Type};

use super::budget::Budget;
use super::run_row::{COLUMNS, SENDABLE_COLUMNS};

/// Stands for the runs' table in a statement's text. Values are never in the text, so it cannot
/// come from a request.
pub(super) const TABLE: &str = "{runs}";

/// Stands for the columns of a run in a statement's text.
pub(super) const RUN_COLUMNS: &str = "{columns}";

/// A parameter's value and its type.
pub(super) type Param = (Box<dyn ToSql + Sync + Send>, Type);

/// A statement with its values.
pub(super) struct Statement {
    /// The text, with [`TABLE`] in place of the runs' table and [`RUN_COLUMNS`] in place of its columns.
    pub(super) template: String,
    pub(super) params: Vec<Param>,
    pub(super) plan: Plan,
    pub(super) memory: Memory,
}

/// How much memory the rows of an answer may take.
pub(super) enum Memory {
    /// As much as they need: the answer is small.
    Any,
    /// The rows up to the one with which they reach this size; the rest is discarded.
    AtMost(usize),
    /// Each row takes a share of this budget when it arrives. The read fails if there is none.
    Budget(Budget),
}

/// How a statement is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// An ordered index scan is the best plan for all values and statistics: prepared once, planned
    /// without values, sorts and bitmap scans disabled.
    Generic,
    /// The best index depends on the values: planned with them each time.
    Custom,
}

impl Statement {
    /// A statement that does not depend on the runs' table.
    pub(super) fn fixed(sql: &str, params: Vec<Param>) -> Self {
        Self {
            template: sql.to_owned(),
            params,
            plan: Plan::Custom,
            memory: Memory::Any,
        }
    }

    /// The text for the runs' table of this (quoted) name, which can change while the API runs. With
    /// `sendable`, characters that the server cannot send are replaced.
    pub(super) fn sql(&self, table: &str, sendable: bool) -> String {
        let columns = if sendable { SENDABLE_COLUMNS } else { COLUMNS };
        self.template
            .replace(TABLE, table)
            .replace(RUN_COLUMNS, columns)
    }

    /// The types of the parameters.
    pub(super) fn types(&self) -> Vec<Type> {
        self.params.iter().map(|(_, kind)| kind.clone()).collect()
    }

    /// The values of the parameters.
    pub(super) fn values(&self) -> Vec<&(dyn ToSql + Sync)> {
        let params = self.params.iter();
        params
            .map(|(value, _)| &**value as &(dyn ToSql + Sync))
            .collect()
    }

    /// The values of the parameters, each with its type.
    pub(super) fn typed_values(&self) -> Vec<(&(dyn ToSql + Sync), Type)> {
        self.values().into_iter().zip(self.types()).collect()
    }
}
