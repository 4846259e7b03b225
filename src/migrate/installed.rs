//! Reads what is installed: the history of steps, the schema, the column, and the tables' names.

use anyhow::{Context as _, bail, ensure};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::migrator::Migrator;
use super::query::{exists, query, query_bool, query_opt};
use super::steps::{COLUMN_VERSION, STEPS};

/// The table that records the applied steps.
const HISTORY: &str = "status_indexer.schema_history";

/// The table that holds the one row of state.
const STATE: &str = "status_indexer.state";

/// A step that is recorded in the history.
pub(super) struct Applied {
    pub(super) version: i32,
    /// When it was applied, as text.
    pub(super) at: String,
}

/// The recorded steps; none if nothing is installed. Version 0 is the schema itself.
pub(super) async fn history(client: &Client) -> anyhow::Result<Vec<Applied>> {
    const APPLIED: &str = "\
-- migrate.history
select version, to_char(applied_at at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS\"Z\"')
  from status_indexer.schema_history
 order by version";
    let read = async {
        if !history_exists(client).await? {
            return Ok(Vec::new());
        }
        query(client, APPLIED, &[]).await
    };
    let rows: anyhow::Result<_> = read.await;
    let rows = rows.with_context(|| {
        format!("cannot read {HISTORY}: the role needs USAGE on the schema and SELECT on the table")
    })?;
    let applied = rows.iter().map(|row| Applied {
        version: row.get(0),
        at: row.get(1),
    });
    Ok(applied.collect())
}

/// What a newer binary has applied, if one has.
pub(super) fn newer_step(history: &[Applied]) -> Option<NewerDatabase> {
    let newest = STEPS.last().map_or(0, |step| step.version);
    let newer = history.iter().find(|step| step.version > newest)?;
    Some(NewerDatabase {
        step: newer.version,
        newest,
    })
}

/// Whether the table of the history exists. Another table of that name, without the history's
/// columns, does not count.
pub(super) async fn history_exists(client: &Client) -> anyhow::Result<bool> {
    const HISTORY_EXISTS: &str = "\
-- migrate.history_exists
select count(*) = 4
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  join pg_attribute a on a.attrelid = c.oid
 where n.nspname = 'status_indexer'
   and c.relname = 'schema_history'
   and a.attname in ('version', 'name', 'applied_at', 'schema_was_there')
   and not a.attisdropped";
    query_bool(client, HISTORY_EXISTS, &[]).await
}

/// Whether the table of the state exists.
pub(super) async fn state_exists(client: &Client) -> anyhow::Result<bool> {
    exists(client, STATE).await
}

/// Whether the schema exists.
pub(super) async fn schema_exists(client: &Client) -> anyhow::Result<bool> {
    const SCHEMA_EXISTS: &str = "\
-- migrate.schema_exists
select exists (select
                 from pg_namespace
                where nspname = 'status_indexer')";
    query_bool(client, SCHEMA_EXISTS, &[]).await
}

/// Whether an operator created the schema before the first migration.
pub(super) async fn operator_created_schema(client: &Client) -> anyhow::Result<bool> {
    const OPERATOR_CREATED_SCHEMA: &str = "\
-- migrate.operator_created_schema
select coalesce(bool_or(schema_was_there), false)
  from status_indexer.schema_history";
    Ok(history_exists(client).await? && query_bool(client, OPERATOR_CREATED_SCHEMA, &[]).await?)
}

/// A newer binary has migrated the database. Its daemon of the previous version still works.
#[derive(Debug, thiserror::Error)]
#[error("{}: use the newer binary", self.finding())]
pub(crate) struct NewerDatabase {
    step: i32,
    newest: i32,
}

impl NewerDatabase {
    /// What is the case, without what to do.
    pub(super) fn finding(&self) -> String {
        format!(
            "the database is at step {}, but this binary knows the steps up to {}",
            self.step, self.newest
        )
    }
}

impl Migrator<'_> {
    /// The versions of the recorded steps. An error if one is newer than this binary.
    pub(super) async fn applied(&self) -> anyhow::Result<Vec<i32>> {
        let history = history(&self.client).await?;
        if let Some(newer) = newer_step(&history) {
            bail!(newer);
        }
        Ok(history.iter().map(|step| step.version).collect())
    }

    /// An error if the indexer is installed for other tables.
    pub(super) async fn check_installed_tables(&self) -> anyhow::Result<()> {
        const INSTALLED_TABLES: &str = "\
-- migrate.installed_tables
select runs_table, metadata_table
  from status_indexer.state";
        if !state_exists(&self.client).await? {
            return Ok(());
        }
        let Some(row) = query_opt(&self.client, INSTALLED_TABLES, &[]).await? else {
            return Ok(());
        };
        let installed: (String, String) = (row.get(0), row.get(1));
        let configured = (self.tables.runs.quoted(), self.tables.metadata.quoted());
        ensure!(
            installed == configured,
            "the indexer is installed for {} and {}, but is configured for {} and {}: set \
             DB_TABLE_NAME_RUNS and DB_TABLE_NAME_METADATA to the installed names, or run \
             `status-indexer migrate down` with the installed names first",
            installed.0,
            installed.1,
            configured.0,
            configured.1
        );
        Ok(())
    }

    /// An error if the column exists although the indexer did not create it.
    pub(super) async fn check_column_is_free(&self, applied: &[i32]) -> anyhow::Result<()> {
        const COLUMN_EXISTS: &str = "\
-- migrate.column_exists
select exists (select
                 from pg_attribute
                where attrelid = to_regclass($1)
                  and attname in ('run_status', 'run_finished_at')
                  and not attisdropped)";
        if applied.contains(&COLUMN_VERSION) {
            return Ok(());
        }
        let runs = self.tables.runs.quoted();
        ensure!(
            !query_bool(&self.client, COLUMN_EXISTS, &[(&runs, Type::TEXT)]).await?,
            "{runs} already has a column run_status or run_finished_at that the indexer did not create: \
             rename or drop that column first"
        );
        Ok(())
    }
}
