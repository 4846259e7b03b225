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

    /// The triggers that a file creates.
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
    /// Removes the trigger. Not in the files: it takes a lock that readers wait for, and creating
    /// a trigger does not.
    pub(super) fn drop_statement(&self) -> String {
        format!("drop trigger if exists {} on {};\n", self.name, self.table)
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

/// The list of all triggers that `status_indexer.triggers()` contains.
pub(super) fn trigger_catalog() -> String {
    let rows: Vec<String> = MIGRATIONS
        .iter()
        .flat_map(|step| step.triggers())
        .map(|trigger| trigger.catalog_row())
        .collect();
    rows.join(",\n           ")
}

/// All indexes, by the files that create them.
pub(super) fn indexes() -> impl Iterator<Item = &'static Migration> {
    MIGRATIONS.iter().filter(|step| step.kind == Kind::Index)
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

/// The column, where it is ours.
pub(super) const DOWN_COLUMN: &str = include_str!("../../migrations/down/1_column.sql");

/// All that is in the indexer's own schema. With the column in one transaction: until it is done,
/// the schema's history tells what there is.
pub(super) const DOWN_SCHEMA: &str = include_str!("../../migrations/down/2_schema.sql");
