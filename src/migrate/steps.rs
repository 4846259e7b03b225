//! The numbered files of `migrations/`, embedded in the binary.

/// How a migration is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// With its record in one transaction.
    Transaction,
    /// The same, and again where somebody has dropped one of its triggers.
    Triggers,
    /// `create index concurrently`, which no transaction can hold. Again where the index is not
    /// there or not valid.
    Index,
}

/// One step up.
#[derive(Debug)]
pub(super) struct Migration {
    pub(super) version: i32,
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) sql: &'static str,
}

impl Migration {
    /// The index that a file of an index makes.
    pub(super) fn index(&self) -> &'static str {
        self.sql
            .lines()
            .find_map(|line| line.strip_prefix("-- migrate: concurrently "))
            .expect("a file of an index names it")
    }

    /// The triggers that a file of triggers makes.
    pub(super) fn triggers(&self) -> Vec<&'static str> {
        self.sql
            .lines()
            .filter_map(|line| line.strip_prefix("create trigger "))
            .collect()
    }
}

macro_rules! migrations {
    ($($version:literal $kind:ident $name:literal),+ $(,)?) => {
        &[$(Migration {
            version: $version,
            name: $name,
            kind: Kind::$kind,
            sql: include_str!(concat!("../../migrations/", $name, ".sql")),
        }),+]
    };
}

/// All steps up, in order. A released file is never changed; a change is a new file.
pub(super) const MIGRATIONS: &[Migration] = migrations![
    1 Transaction "0001_schema",
    2 Transaction "0002_column",
    3 Transaction "0003_check",
    4 Transaction "0004_check_validate",
    5 Transaction "0005_definition",
    6 Transaction "0006_apply",
    7 Transaction "0007_sweep",
    8 Transaction "0008_compare",
    9 Transaction "0009_explain",
    10 Transaction "0010_trigger_functions",
    11 Triggers "0011_runs_triggers",
    12 Triggers "0012_metadata_triggers",
    13 Index "0013_listing_index",
    14 Index "0014_running_index",
];

/// The way down: what writers meet first, so that nothing fires into functions that are about to go.
pub(super) const DOWN_TRIGGERS: &str = include_str!("../../migrations/down/1_triggers.sql");

/// The column, where it is ours.
pub(super) const DOWN_COLUMN: &str = include_str!("../../migrations/down/2_column.sql");

/// All that is in the indexer's own schema. With the column in one transaction: until it is done,
/// the schema's history tells what there is.
pub(super) const DOWN_SCHEMA: &str = include_str!("../../migrations/down/3_schema.sql");
