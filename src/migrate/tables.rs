//! Finds upstream's tables by the names that upstream itself is configured with.
//!
//! Every name is looked up in the catalog once; statements contain the name found there, quoted.

use anyhow::{Context as _, bail, ensure};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::query::{query_bool, query_one, query_opt};
use crate::pg::quote_ident;

/// Names as configured. Upstream inserts them into its SQL without quotes, so a name is folded to
/// lower case unless it contains quotes, may contain a schema, and is otherwise looked up on the
/// search path.
#[derive(Debug, Clone)]
pub struct TableNames {
    /// `DB_TABLE_NAME_RUNS`.
    pub runs: String,
    /// `DB_TABLE_NAME_METADATA`.
    pub metadata: String,
    /// `DB_SCHEMA_NAME`; if none, the role's own search path applies.
    pub schema: Option<String>,
}

/// A table that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its schema, as in the catalog.
    pub schema: String,
    /// Its name, as in the catalog.
    pub name: String,
}

impl Table {
    /// Its full name, quoted.
    #[must_use]
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_ident(&self.schema), quote_ident(&self.name))
    }
}

/// The two tables that the indexer reads.
#[derive(Debug, Clone)]
pub struct Tables {
    /// `runs_v3`.
    pub runs: Table,
    /// `metadata_v3`.
    pub metadata: Table,
}

impl Tables {
    /// Looks up the tables. The caller has begun a transaction.
    ///
    /// # Errors
    /// If one does not exist, or is not an ordinary table.
    pub async fn find(client: &Client, names: &TableNames) -> anyhow::Result<Self> {
        let path = names
            .schema
            .as_ref()
            .map_or_else(|| "default".to_owned(), |schema| quote_ident(schema));
        client
            .batch_execute(&format!(
                "-- migrate.search_path\nsavepoint search_path; set local search_path = {path}"
            ))
            .await
            .context("cannot set the search path")?;
        let found = Self {
            runs: find(client, &names.runs, "DB_TABLE_NAME_RUNS").await?,
            metadata: find(client, &names.metadata, "DB_TABLE_NAME_METADATA").await?,
        };
        client
            .batch_execute("rollback to savepoint search_path")
            .await?;
        Ok(found)
    }

    /// Checks that the tables have all columns and the index that the indexer reads. A database may
    /// have upstream's first migrations only.
    ///
    /// # Errors
    /// If one is missing; the message names it, and upstream's migration that adds it.
    pub(super) async fn check_upstream(&self, client: &Client) -> anyhow::Result<()> {
        const MISSING: &str = "\
-- migrate.missing_columns
select string_agg(wanted, ', ' order by position)
  from unnest($2::text[]) with ordinality w (wanted, position)
 where not exists (select
                     from pg_attribute
                    where attrelid = to_regclass($1)
                      and attname = wanted
                      and not attisdropped)";
        for (table, columns) in [
            (&self.runs, RUNS_COLUMNS),
            (&self.metadata, METADATA_COLUMNS),
        ] {
            let name = table.quoted();
            let params = [(&name as _, Type::TEXT), (&columns as _, Type::TEXT_ARRAY)];
            let missing: Option<String> = query_one(client, MISSING, &params).await?.get(0);
            if let Some(missing) = missing {
                bail!(UpstreamMissing(format!(
                    "{name} has no column {missing}: run the migrations of the metadata service \
                     first (at least up to {COLUMNS_MIGRATION}), or correct the name of the table"
                )));
            }
        }
        const INDEXED: &str = "\
-- migrate.metadata_index
select exists (select
                 from pg_index i
                where i.indrelid = to_regclass($1)
                  and i.indisvalid
                  and i.indpred is null
                  and $2 = array(select a.attname::text
                                   from unnest(i.indkey[0:2]) with ordinality k (attnum, position)
                                   join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
                                  order by k.position))";
        let name = self.metadata.quoted();
        let columns = &["flow_id", "run_number", "step_name"][..];
        let params = [(&name as _, Type::TEXT), (&columns as _, Type::TEXT_ARRAY)];
        ensure!(
            query_bool(client, INDEXED, &params).await?,
            UpstreamMissing(format!(
                "{name} has no index on (flow_id, run_number, step_name), without which each status \
                 takes a read of the whole table: run the migrations of the metadata service first (at \
                 least up to {INDEX_MIGRATION}), or create such an index"
            ))
        );
        Ok(())
    }
}

/// Upstream's tables do not exist, or lack what the indexer reads. The metadata service's own
/// migrations may create it at any time.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UpstreamMissing(pub(crate) String);

/// Upstream's migration that adds the newest of the columns below.
const COLUMNS_MIGRATION: &str = "20200603104139_add_str_id_cols";

/// Upstream's migration that creates the index on the metadata of a step.
const INDEX_MIGRATION: &str = "20201002000616_update_metadata_primary_key";

/// The columns of the runs table that the indexer and its read API read.
const RUNS_COLUMNS: &[&str] = &[
    "flow_id",
    "run_number",
    "run_id",
    "user_name",
    "ts_epoch",
    "tags",
    "system_tags",
    "last_heartbeat_ts",
];

/// The columns of the metadata table that the indexer reads.
const METADATA_COLUMNS: &[&str] = &[
    "flow_id",
    "run_number",
    "step_name",
    "task_id",
    "id",
    "field_name",
    "value",
    "ts_epoch",
];

/// Looks up one table. `variable` is the setting that contains its name.
async fn find(client: &Client, name: &str, variable: &str) -> anyhow::Result<Table> {
    const FIND: &str = "\
-- migrate.find_table
select n.nspname::text, c.relname::text, c.relkind = 'r'
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where c.oid = to_regclass($1)";
    let row = query_opt(client, FIND, &[(&name, Type::TEXT)])
        .await
        .with_context(|| format!("cannot look up the table {name:?}: correct {variable}"))?
        .ok_or_else(|| {
            UpstreamMissing(format!(
                "the table {name} does not exist: connect to the metadata service's database, or \
                 set {variable} and DB_SCHEMA_NAME as the metadata service does"
            ))
        })?;
    let ordinary: bool = row.get(2);
    ensure!(
        ordinary,
        "{name} is not an ordinary table, and views and partitioned tables are not supported: \
         correct {variable}"
    );
    let table = Table {
        schema: row.get(0),
        name: row.get(1),
    };
    // The bodies of functions contain the name, and `$$` ends a body.
    ensure!(
        !table.quoted().contains("$$"),
        "the name {name} contains $$, which is not supported: rename the table or its schema"
    );
    Ok(table)
}

/// Whether triggers of upstream's UI send a notification for every update of the runs table. `runs`
/// is the table's full name, quoted.
///
/// # Errors
/// If the catalog cannot be read.
pub async fn upstream_notify_triggers(client: &Client, runs: &str) -> anyhow::Result<bool> {
    // 16 is the bit of UPDATE in tgtype.
    const NOTIFY_TRIGGERS: &str = "\
-- migrate.upstream_notify_triggers
select exists (select
                 from pg_trigger
                where tgrelid = to_regclass($1)
                  and tgname like 'notify\\_ui%'
                  and tgtype & 16 <> 0
                  and tgenabled <> 'D')";
    query_bool(client, NOTIFY_TRIGGERS, &[(&runs, Type::TEXT)]).await
}
