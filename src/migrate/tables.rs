//! Finds upstream's tables by the names that upstream itself is configured with.
//!
//! Every name is looked up in the catalog once; statements contain the name found there, quoted.

use anyhow::{Context as _, ensure};
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

    /// Checks that the role owns the tables: only an owner can alter a table.
    ///
    /// # Errors
    /// If the session's role does not own one of them; the message names the owner.
    pub(super) async fn check_owned(&self, client: &Client) -> anyhow::Result<()> {
        const OWNED: &str = "\
-- migrate.check_owned
select pg_get_userbyid(relowner)::text, current_user::text, pg_has_role(relowner, 'usage')
  from pg_class
 where oid = to_regclass($1)";
        for table in [&self.runs, &self.metadata] {
            let row = query_one(client, OWNED, &[(&table.quoted(), Type::TEXT)]).await?;
            let (owner, role, owned): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
            ensure!(
                owned,
                "the role {role} does not own {}: migrate as {owner}; for a daemon that runs as \
                 another role, add --grant-to",
                table.quoted()
            );
        }
        Ok(())
    }
}

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
        .with_context(|| {
            format!(
                "the table {name} does not exist: connect to the metadata service's database, or \
                 set {variable} and DB_SCHEMA_NAME as the metadata service does"
            )
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
