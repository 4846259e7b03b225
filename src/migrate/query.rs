//! Runs the named statements of the migrator.
//!
//! All other files of `migrate` use these functions, so that every error names its statement.
//! Parameters have explicit types: no statement is prepared by name, which a transaction pooler
//! would lose.

use anyhow::Context as _;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use crate::pg::{Param, name_of};

/// Runs a statement that returns any number of rows.
pub(super) async fn query(
    client: &Client,
    sql: &'static str,
    params: &[Param<'_>],
) -> anyhow::Result<Vec<Row>> {
    let rows = client.query_typed(sql, params).await;
    rows.with_context(|| format!("{} failed", name_of(sql)))
}

/// Runs a statement that returns at most one row.
pub(super) async fn query_opt(
    client: &Client,
    sql: &'static str,
    params: &[Param<'_>],
) -> anyhow::Result<Option<Row>> {
    let row = client.query_typed_opt(sql, params).await;
    row.with_context(|| format!("{} failed", name_of(sql)))
}

/// Runs a statement that returns one row.
pub(super) async fn query_one(
    client: &Client,
    sql: &'static str,
    params: &[Param<'_>],
) -> anyhow::Result<Row> {
    let row = client.query_typed_one(sql, params).await;
    row.with_context(|| format!("{} failed", name_of(sql)))
}

/// Runs a statement that returns one boolean.
pub(super) async fn query_bool(
    client: &Client,
    sql: &'static str,
    params: &[Param<'_>],
) -> anyhow::Result<bool> {
    Ok(query_one(client, sql, params).await?.get(0))
}

/// Whether a table, an index or another relation exists.
pub(super) async fn exists(client: &Client, relation: &str) -> anyhow::Result<bool> {
    const EXISTS: &str = "\
-- migrate.exists
select to_regclass($1) is not null";
    query_bool(client, EXISTS, &[(&relation, Type::TEXT)]).await
}

/// Runs statements in one transaction.
pub(super) async fn transaction(
    client: &Client,
    statements: &str,
) -> Result<(), tokio_postgres::Error> {
    let sql = format!("begin isolation level read committed;\n{statements}\ncommit;");
    let outcome = client.batch_execute(&sql).await;
    if outcome.is_err() {
        // The transaction is aborted, or the connection is broken and the rollback fails too.
        let _ = client.batch_execute("rollback").await;
    }
    outcome
}
