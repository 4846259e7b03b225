//! `migrate status`: what is installed, and whether it is whole.

use std::fmt::Write as _;

use anyhow::Context as _;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::steps::{MIGRATIONS, Migration, indexes as index_steps};
use super::tables::{TableNames, Tables};
use crate::pg::{Connector, SessionProfile, quote_ident};

/// A report for people, and whether everything is installed and whole.
///
/// # Errors
/// If the database cannot be read.
pub async fn status(connector: &Connector, names: &TableNames) -> anyhow::Result<(String, bool)> {
    let client = connector
        .connect(SessionProfile::ReadOnlyTransaction)
        .await?;
    let tables = Tables::find(&client, names).await?;
    let mut text = format!(
        "tables      {}, {}\n",
        tables.runs.quoted(),
        tables.metadata.quoted()
    );
    let applied = applied(&client).await?;
    let mut whole = true;
    for step in MIGRATIONS {
        let mark = applied
            .iter()
            .find(|(version, _)| *version == step.version)
            .map_or_else(|| "pending".to_owned(), |(_, at)| format!("applied {at}"));
        whole &= mark != "pending";
        writeln!(text, "{:<28}{mark}", step.name)?;
    }
    if applied.is_empty() {
        text.push_str("not installed: run `status-indexer migrate up`\n");
        return Ok((text, false));
    }
    // Before all steps are applied, the function that reports on triggers may not exist.
    whole = whole && triggers(&client, &mut text).await?;
    whole &= indexes(&client, &tables, &mut text).await?;
    if whole {
        state(&client, &mut text).await?;
    }
    Ok((text, whole))
}

async fn applied(client: &Client) -> anyhow::Result<Vec<(i32, String)>> {
    let there: bool = client
        .query_one(
            "-- migrate.history_there\nselect to_regclass('status_indexer.schema_history') is not null",
            &[],
        )
        .await?
        .get(0);
    if !there {
        return Ok(Vec::new());
    }
    let rows = client
        .query(
            "-- migrate.history
select version, to_char(applied_at at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS\"Z\"')
  from status_indexer.schema_history
 order by version",
            &[],
        )
        .await
        .context("cannot read the history: the role needs USAGE on the schema status_indexer")?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

async fn triggers(client: &Client, text: &mut String) -> anyhow::Result<bool> {
    let rows = client
        .query(
            "-- migrate.triggers
select to_regclass(table_name)::text, trigger_name, state
  from status_indexer.triggers()",
            &[],
        )
        .await?;
    let mut whole = true;
    for row in &rows {
        let (table, name, state): (String, String, &str) = (row.get(0), row.get(1), row.get(2));
        let mark = match state {
            "enabled" => "enabled",
            "disabled" => "DISABLED: enable it, then run `select status_indexer.invalidate()`",
            "missing" => "MISSING: run `status-indexer migrate up`",
            "replaced" => "REPLACED: run `status-indexer migrate up`",
            _ => "FUNCTION REPLACED: run `status-indexer migrate down`, then `migrate up`",
        };
        writeln!(text, "trigger     {name} on {table}: {mark}")?;
        whole &= state == "enabled";
    }
    Ok(whole)
}

async fn indexes(client: &Client, tables: &Tables, text: &mut String) -> anyhow::Result<bool> {
    let mut whole = true;
    for name in index_steps().map(Migration::index) {
        let full = format!("{}.{name}", quote_ident(&tables.runs.schema));
        let valid = client
            .query_typed_opt(
                "-- migrate.index\nselect indisvalid from pg_index where indexrelid = to_regclass($1)",
                &[(&full, Type::TEXT)],
            )
            .await?
            .map(|row| row.get::<_, bool>(0));
        let mark = match valid {
            Some(true) => "valid",
            Some(false) => "INVALID: run `status-indexer migrate up`",
            None => "missing",
        };
        writeln!(text, "index       {name}: {mark}")?;
        whole &= valid == Some(true);
    }
    Ok(whole)
}

async fn state(client: &Client, text: &mut String) -> anyhow::Result<()> {
    let row = client
        .query_one(
            "-- migrate.state
select cutoff_secs, valid_since is not null, scan_compared, scan_corrected
  from status_indexer.state",
            &[],
        )
        .await?;
    let (cutoff, believable): (i64, bool) = (row.get(0), row.get(1));
    writeln!(text, "cutoff      {cutoff} s")?;
    if believable {
        writeln!(text, "believable  yes")?;
    } else {
        let (compared, corrected): (i64, i64) = (row.get(2), row.get(3));
        writeln!(
            text,
            "believable  no: the first pass has compared {compared} runs and corrected {corrected}; \
             it goes on while `status-indexer run` does"
        )?;
    }
    Ok(())
}
