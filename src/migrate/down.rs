//! `migrate down`: removes all objects, in an order that can be interrupted and repeated.
//!
//! Objects of others stop it before it removes anything. The triggers go first, because they execute the functions. The history goes last, with the
//! column: it records whether the column and the schema are the indexer's to drop.

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::migrator::Migrator;
use super::render::render;
use super::steps::{self, COLUMN_VERSION, DOWN_COLUMN, DOWN_SCHEMA};
use super::tables::TableNames;
use super::{grants, installed};
use crate::pg::Connector;
use crate::store::INVALIDATE;

/// Removes all objects of the indexer from the database. Can be repeated, also after a crash.
///
/// # Errors
/// If the tables are not found, the role may not change them, or a statement fails.
pub async fn down(
    connector: &Connector,
    names: &TableNames,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let migrator = Migrator::open(connector, names, stop).await?;
    if !installed::history_exists(&migrator.client).await? {
        tracing::info!("nothing to do: the indexer is not installed");
        return Ok(());
    }
    if !migrator.roles.superuser {
        migrator.become_owner().await?;
        migrator.check_objects_owned().await?;
    }
    let applied = migrator.applied().await?;
    migrator.check_installed_tables().await?;
    migrator.check_dependents().await?;
    migrator.remove_triggers().await?;
    for step in steps::indexes() {
        migrator.drop_index(step).await?;
    }
    grants::revoke(&migrator.client).await?;
    migrator.remove_objects(&applied).await?;
    tracing::info!("all objects removed");
    Ok(())
}

impl Migrator<'_> {
    /// Removes the triggers and invalidates the column. From here on statuses become outdated, and
    /// readers must see that even if a later statement fails.
    async fn remove_triggers(&self) -> anyhow::Result<()> {
        let on_runs = self.drop_triggers(&self.tables.runs.quoted()).await?;
        let on_metadata = self.drop_triggers(&self.tables.metadata.quoted()).await?;
        let invalidate = if installed::state_exists(&self.client).await? {
            INVALIDATE
        } else {
            ""
        };
        self.remove(&format!("{on_runs}{on_metadata}{invalidate}"))
            .await
    }

    /// Removes the column, if the indexer created it, and all objects in the schema.
    async fn remove_objects(&self, applied: &[i32]) -> anyhow::Result<()> {
        let column = if applied.contains(&COLUMN_VERSION) {
            DOWN_COLUMN
        } else {
            ""
        };
        let keep_schema = installed::operator_created_schema(&self.client).await?;
        let sql = render(
            &format!("{column}\n{DOWN_SCHEMA}"),
            &self.tables,
            &[("schema_was_there", &keep_schema.to_string())],
        );
        self.remove(&sql).await
    }

    async fn remove(&self, sql: &str) -> anyhow::Result<()> {
        self.in_transaction(sql).await.context(
            "cannot remove all objects: correct the cause and run `status-indexer migrate down` \
             again",
        )
    }
}
