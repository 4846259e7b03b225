//! Finds upstream's tables by the names that upstream itself is configured with.

use anyhow::{Context as _, ensure};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::pg::{quote_ident, quote_literal};

/// Names as configured. Upstream uses them unquoted: they fold to lower case unless they carry
/// quotes of their own, may carry a schema, and are otherwise looked up on the search path.
#[derive(Debug, Clone)]
pub struct TableNames {
    /// `DB_TABLE_NAME_RUNS`.
    pub runs: String,
    /// `DB_TABLE_NAME_METADATA`.
    pub metadata: String,
    /// `DB_SCHEMA_NAME`; without it, the role's own search path.
    pub schema: Option<String>,
}

/// A table that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its schema, as in the catalogue.
    pub schema: String,
    /// Its name, as in the catalogue.
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
    /// Looks the tables up, in the transaction that the caller has open.
    ///
    /// # Errors
    /// If one is not there, or is no ordinary table.
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

    /// Only an owner can change a table.
    ///
    /// # Errors
    /// If the role of the session does not own one of them; the message says who does.
    pub(super) async fn check_owned(&self, client: &Client) -> anyhow::Result<()> {
        const OWNED: &str = "\
-- migrate.check_owned
select pg_get_userbyid(relowner)::text, current_user::text, pg_has_role(relowner, 'usage')
  from pg_class
 where oid = to_regclass($1)";
        for table in [&self.runs, &self.metadata] {
            let row = client
                .query_typed_one(OWNED, &[(&table.quoted(), Type::TEXT)])
                .await?;
            let (owner, role, owned): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
            ensure!(
                owned,
                "the role {role} does not own {}: migrate as {owner}, and let `run` be another role \
                 with --grant-to",
                table.quoted()
            );
        }
        Ok(())
    }
}

async fn find(client: &Client, name: &str, variable: &str) -> anyhow::Result<Table> {
    const FIND: &str = "\
-- migrate.find_table
select n.nspname::text, c.relname::text, c.relkind = 'r'
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where c.oid = to_regclass($1)";
    let row = client
        .query_typed_opt(FIND, &[(&name, Type::TEXT)])
        .await
        .with_context(|| format!("{name:?} is no table's name: correct {variable}"))?
        .with_context(|| {
            format!(
                "there is no table {name}: is this the metadata service's database? Other names are \
                 set with {variable} and DB_SCHEMA_NAME"
            )
        })?;
    let ordinary: bool = row.get(2);
    ensure!(
        ordinary,
        "{name} is no ordinary table (a view or a partitioned one cannot be indexed so)"
    );
    let table = Table {
        schema: row.get(0),
        name: row.get(1),
    };
    // The name is put into the bodies of functions, which `$$` ends.
    ensure!(
        !table.quoted().contains("$$"),
        "the name {name} contains $$, which is not supported"
    );
    Ok(table)
}

/// Whether triggers of upstream's UI send a message for every update of the runs' table.
///
/// # Errors
/// If the catalogue cannot be read.
pub async fn upstream_notify_triggers(client: &Client, runs: &str) -> anyhow::Result<bool> {
    // 16 is the bit of UPDATE in tgtype.
    let sql = format!(
        "-- migrate.upstream_notify_triggers
select exists (select
                 from pg_trigger
                where tgrelid = to_regclass({})
                  and tgname like 'notify\\_ui%'
                  and tgtype & 16 <> 0
                  and tgenabled <> 'D')",
        quote_literal(runs)
    );
    Ok(client.query_one(&sql, &[]).await?.get(0))
}
