//! Builds, checks and drops indexes without blocking writers.
//!
//! A concurrent build cannot run in a transaction, and an interrupted one leaves an invalid index.
//! Such an index slows updates and serves no query, so it is dropped and built again. Builds and
//! drops have no time limit; their progress is logged.

use anyhow::bail;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::migrator::{LOG_INTERVAL, Migrator, STOPPED};
use super::query::{query_bool, query_opt};
use super::steps::Step;
use super::tables::Tables;
use crate::error::chain;
use crate::pg::{SessionProfile, quote_ident};

/// The index that a step creates, with its schema: an index is in the schema of its table.
pub(super) fn qualified_name(tables: &Tables, step: &Step) -> String {
    format!("{}.{}", quote_ident(&tables.runs.schema), step.index())
}

/// Whether the index of a step is valid; none if it does not exist. An index of that name on another
/// table or with another definition is not the indexer's.
pub(super) async fn validity(
    client: &Client,
    tables: &Tables,
    step: &Step,
) -> anyhow::Result<Option<bool>> {
    const VALIDITY: &str = "\
-- migrate.index_validity
select indisvalid
  from pg_index
 where indexrelid = to_regclass($1)
   and indrelid = to_regclass($2)
   and regexp_replace(lower(split_part(pg_get_indexdef(indexrelid), ' USING btree ', 2)),
                      ' with \\([^)]*\\)', '') = lower($3)";
    let (name, table) = (qualified_name(tables, step), step.table(tables).quoted());
    let definition = step.index_definition();
    let params = [
        (&name as _, Type::TEXT),
        (&table as _, Type::TEXT),
        (&definition as _, Type::TEXT),
    ];
    let row = query_opt(client, VALIDITY, &params).await?;
    Ok(row.map(|row| row.get(0)))
}

impl Migrator<'_> {
    /// Whether the index of a step exists and is valid.
    pub(super) async fn index_is_valid(&self, step: &Step) -> anyhow::Result<bool> {
        Ok(validity(&self.client, &self.tables, step).await? == Some(true))
    }

    /// Builds the index of a step, unless it is valid already.
    pub(super) async fn build_index(&self, step: &Step, sql: &str) -> anyhow::Result<()> {
        if !self.index_is_valid(step).await? {
            self.drop_index(step).await?;
            self.build_as_either_role(sql).await?;
        }
        Ok(())
    }

    /// Builds an index. Its owner is the table's owner, whoever builds it, but who builds it needs
    /// CREATE on the schema of the table.
    async fn build_as_either_role(&self, sql: &str) -> anyhow::Result<()> {
        const OWNER_MAY_CREATE: &str = "\
-- migrate.owner_may_create_index
select has_schema_privilege(current_user, $1, 'create')";
        let schema = &self.tables.runs.schema;
        if query_bool(&self.client, OWNER_MAY_CREATE, &[(schema, Type::TEXT)]).await? {
            return self.run_with_progress(sql).await;
        }
        self.become_login().await?;
        self.run_with_progress(sql).await?;
        self.become_owner().await
    }

    /// Drops the index of a step, if it exists and is the indexer's. Returns whether it existed.
    pub(super) async fn drop_index(&self, step: &Step) -> anyhow::Result<bool> {
        let exists = validity(&self.client, &self.tables, step).await?.is_some();
        if exists {
            let name = qualified_name(&self.tables, step);
            self.run_with_progress(&format!("drop index concurrently {name}"))
                .await?;
        }
        Ok(exists)
    }

    /// Runs a statement without a time limit. Logs its progress, and cancels it when the migrator
    /// is asked to stop.
    async fn run_with_progress(&self, sql: &str) -> anyhow::Result<()> {
        let cancel = self.client.cancel_token();
        let work = self.client.batch_execute(sql);
        tokio::pin!(work);
        let observer = self.connector.connect(SessionProfile::Reader).await?;
        loop {
            tokio::select! {
                done = &mut work => return Ok(done?),
                () = self.stop.cancelled() => {
                    self.connector.cancel(&cancel).await;
                    // The request to cancel is asynchronous. If the connection closed before the
                    // server handles it, the statement could run to its end.
                    tokio::time::timeout(LOG_INTERVAL, work).await.ok();
                    bail!(STOPPED);
                }
                () = tokio::time::sleep(LOG_INTERVAL) => log_progress(&observer).await,
            }
        }
    }
}

async fn log_progress(observer: &Client) {
    const PROGRESS: &str = "\
-- migrate.progress
select format('%s, %s%% of blocks%s', phase, coalesce(100 * blocks_done / nullif(blocks_total, 0), 0),
              case when current_locker_pid > 0 then format(', waiting for pid %s', current_locker_pid) end)
  from pg_stat_progress_create_index
 where datname = current_database()";
    match query_opt(observer, PROGRESS, &[]).await {
        Ok(Some(row)) => {
            let progress: String = row.get(0);
            tracing::info!(progress, "building an index");
        }
        Ok(None) => tracing::info!("building or dropping an index"),
        Err(error) => tracing::debug!(error = chain(error.as_ref()), "no progress available"),
    }
}
