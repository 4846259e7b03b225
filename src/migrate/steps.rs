//! The steps: the numbered files of `migrations/`, embedded in the binary.
//!
//! Owns the catalog of triggers and indexes. Their names are defined only in the files, and read from
//! there by everything that checks, repairs or removes them.

use super::tables::{Table, Tables};

/// How a step is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// In one transaction with its record.
    Transaction,
    /// In one transaction with its record; again if one of its triggers is missing or replaced.
    Triggers,
    /// By `create index concurrently`, which cannot run in a transaction; again if the index is
    /// missing or not valid.
    Index,
    /// The same, for sites that keep the ends of runs for the web UI.
    UiIndex,
}

impl Kind {
    /// Whether the step creates an index.
    pub(super) fn is_index(self) -> bool {
        matches!(self, Self::Index | Self::UiIndex)
    }
}

/// One file of `migrations/`.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) version: i32,
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) sql: &'static str,
}

impl Step {
    /// The name of the index that the file creates, without its schema.
    pub(super) fn index(&self) -> &'static str {
        self.sql
            .lines()
            .find_map(|line| line.strip_prefix("-- migrate: concurrently "))
            .expect("the first line of an index's file contains its name")
    }

    /// The definition of the index that the file creates, from its columns on, in the form of
    /// `pg_get_indexdef` in lower case.
    pub(super) fn index_definition(&self) -> String {
        let (_, definition) = self
            .sql
            .split_once(RUNS)
            .expect("the indexes are on the runs table");
        let words: Vec<&str> = definition.split_whitespace().collect();
        words.join(" ").trim_end_matches(';').to_owned()
    }

    /// The table on which the file creates its triggers or its index.
    pub(super) fn table<'t>(&self, tables: &'t Tables) -> &'t Table {
        if self.sql.contains(RUNS) {
            &tables.runs
        } else {
            &tables.metadata
        }
    }

    /// The triggers that the file creates.
    pub(super) fn triggers(&self) -> impl Iterator<Item = Trigger> {
        self.sql.split("\ncreate trigger ").skip(1).map(|rest| {
            let (name, rest) = rest.split_once('\n').expect("a trigger has a name");
            let table = [RUNS, METADATA]
                .into_iter()
                .find(|table| rest.contains(table))
                .expect("a trigger is on one of the two tables");
            let (_, rest) = rest
                .split_once("execute function ")
                .expect("a trigger executes a function");
            let (function, _) = rest.split_once(';').expect("a statement ends");
            Trigger {
                name,
                table,
                function,
            }
        })
    }
}

/// The placeholder of the runs table.
const RUNS: &str = "{{runs}}";

/// The placeholder of the metadata table.
const METADATA: &str = "{{metadata}}";

/// A trigger, as its `create trigger` statement describes it.
#[derive(Debug)]
pub(super) struct Trigger {
    /// Its name, unique on its table.
    pub(super) name: &'static str,
    /// The placeholder of its table.
    table: &'static str,
    /// The function that it executes, with its arguments' types.
    function: &'static str,
}

impl Trigger {
    /// Its table.
    pub(super) fn table<'t>(&self, tables: &'t Tables) -> &'t Table {
        match self.table {
            RUNS => &tables.runs,
            _ => &tables.metadata,
        }
    }

    /// One row of the list in `status_indexer.triggers()`.
    fn catalog_row(&self) -> String {
        let table = match self.table {
            RUNS => "s.runs_table",
            _ => "s.metadata_table",
        };
        format!("({table}, '{}', '{}')", self.name, self.function)
    }
}

/// All triggers.
pub(super) fn triggers() -> impl Iterator<Item = Trigger> {
    STEPS.iter().flat_map(Step::triggers)
}

/// The list of all triggers that `status_indexer.triggers()` contains.
pub(super) fn trigger_catalog() -> String {
    let rows: Vec<String> = triggers().map(|trigger| trigger.catalog_row()).collect();
    rows.join(",\n           ")
}

/// The steps that create an index.
pub(super) fn indexes() -> impl Iterator<Item = &'static Step> {
    STEPS.iter().filter(|step| step.kind.is_index())
}

/// Whether a step belongs to what is kept for the web UI.
pub(super) fn is_of_ui(version: i32) -> bool {
    STEPS
        .iter()
        .any(|step| step.version == version && step.kind == Kind::UiIndex)
}

macro_rules! steps {
    ($($version:literal $kind:ident $name:literal),+ $(,)?) => {
        &[$(Step {
            version: $version,
            name: $name,
            kind: Kind::$kind,
            sql: include_str!(concat!("../../migrations/", $name, ".sql")),
        }),+]
    };
}

/// All steps, in order. A released file is never changed; a change is a new file.
pub(super) const STEPS: &[Step] = steps![
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
    13 Index "0013_running_index",
    14 Index "0014_completed_index",
    15 Index "0015_failed_index",
    16 Transaction "0016_reads",
    17 UiIndex "0017_ui_status_index",
    18 UiIndex "0018_ui_finished_index",
    19 UiIndex "0019_ui_duration_index",
];

/// The view for readers and its function, which `up` also creates by themselves.
pub(super) const VIEW: &str = include_str!("../../migrations/view.sql");

/// The version of the step that creates the state.
pub(super) const STATE_VERSION: i32 = 1;

/// The version of the step that creates the column.
pub(super) const COLUMN_VERSION: i32 = 2;

/// Drops the column, if the indexer created it.
pub(super) const DOWN_COLUMN: &str = include_str!("../../migrations/down/1_column.sql");

/// Drops all objects in the indexer's own schema. Runs in one transaction with [`DOWN_COLUMN`], so
/// that the history exists for as long as the column does.
pub(super) const DOWN_SCHEMA: &str = include_str!("../../migrations/down/2_schema.sql");

/// The relations and the functions (with their arguments' types) that [`DOWN_SCHEMA`] drops: all
/// objects in the schema that are the indexer's.
pub(super) fn objects() -> (Vec<&'static str>, Vec<&'static str>) {
    let drops = DOWN_SCHEMA
        .lines()
        .filter_map(|line| line.strip_prefix("drop ")?.strip_suffix(';'))
        .filter_map(|drop| drop.split_once(" if exists "));
    let (functions, relations): (Vec<_>, Vec<_>) = drops.partition(|(kind, _)| *kind == "function");
    let names = |drops: Vec<(&str, &'static str)>| drops.into_iter().map(|drop| drop.1).collect();
    (names(relations), names(functions))
}
