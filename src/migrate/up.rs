//! `migrate up`: applies the steps that are missing.
//!
//! A recorded step is applied again if one of its triggers or its index was dropped or replaced.

use anyhow::Context as _;
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use super::migrator::Migrator;
use super::query::{query_bool, transaction};
use super::render::render;
use super::steps::{COLUMN_VERSION, Kind, STATE_VERSION, STEPS, Step};
use super::tables::{TableNames, upstream_notify_triggers};
use super::view::Columns;
use super::{grants, installed};
use crate::pg::{Connector, quote_ident, quote_literal};
use crate::store::INVALIDATE;

/// The parameters of [`up`].
#[derive(Debug, Clone)]
pub struct Options {
    /// Upstream's tables, as configured.
    pub names: TableNames,
    /// The cutoff to install, seconds.
    pub cutoff_secs: i64,
    /// A role to grant the privileges that `run` needs, if the daemon does not run as the owner.
    pub grant_to: Option<String>,
    /// Roles to grant the privileges that a dump of the database needs.
    pub grant_dump_to: Vec<String>,
    /// Whether subscribers of publications with the runs table are prepared for the column.
    pub allow_publications: bool,
    /// Whether to keep the ends of runs, with the indexes of the web UI's listings.
    pub ui: Ui,
}

/// What to do about the ends of runs and the indexes of the web UI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ui {
    /// Leave it as it is.
    AsIs,
    /// Keep them from now on.
    Keep,
    /// Remove them.
    Remove,
}

/// Brings the objects to this binary's version.
///
/// # Errors
/// If the tables are not found, the role may not change them, or a step fails. The steps before the
/// failing one stay applied, and the next call continues after them.
pub async fn up(
    connector: &Connector,
    options: &Options,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let migrator = Migrator::open(connector, &options.names, stop).await?;
    migrator.become_owner().await?;
    migrator.check_objects_owned().await?;
    let applied = migrator.applied().await?;
    migrator.check_installed_tables().await?;
    migrator.tables.check_upstream(&migrator.client).await?;
    migrator.check_column_is_free(&applied).await?;
    migrator.check_names_are_free().await?;
    if !options.allow_publications && !applied.contains(&COLUMN_VERSION) {
        migrator.check_publications().await?;
    }
    migrator.create_history().await?;
    let removed = options.ui == Ui::Remove && migrator.remove_ui(&applied).await?;
    let applied = migrator.applied().await?;
    let keep_ui = options.ui == Ui::Keep;
    let mut count = migrator
        .apply_missing(&applied, options.cutoff_secs, keep_ui)
        .await?;
    count += usize::from(removed);
    if let Some(role) = &options.grant_to {
        grants::grant(&migrator.client, &migrator.tables, role).await?;
        tracing::info!(role, "granted the privileges that `run` needs");
    }
    for role in &options.grant_dump_to {
        grants::grant_dump(&migrator.client, &migrator.tables, role).await?;
        tracing::info!(role, "granted the privileges that a dump needs");
    }
    migrator.warn_of_dumps().await?;
    if upstream_notify_triggers(&migrator.client, &migrator.tables.runs.quoted()).await? {
        tracing::warn!(
            "upstream's notify_ui trigger sends a notification for each status written; the \
             backfill limits its rate"
        );
    }
    if count == 0 {
        tracing::info!("nothing to do: the objects are up to date");
    }
    Ok(())
}

impl Migrator<'_> {
    /// Creates the history, and the schema unless an operator has created it.
    async fn create_history(&self) -> anyhow::Result<()> {
        if installed::history_exists(&self.client).await? {
            return Ok(());
        }
        let schema_exists = installed::schema_exists(&self.client).await?;
        let create_schema = if schema_exists {
            String::new()
        } else {
            self.create_schema().await?
        };
        let sql = format!(
            "-- migrate.create_history
             {create_schema}
             create table status_indexer.schema_history (
               version    integer primary key,
               name       text not null,
               applied_at timestamptz not null default clock_timestamp(),
               -- In the first row: an operator created the schema, so `migrate down` keeps it.
               schema_was_there boolean not null default false
             );
             insert into status_indexer.schema_history (version, name, schema_was_there)
             values (0, 'schema', {schema_exists});"
        );
        transaction(&self.client, &sql).await.with_context(|| {
            let (owner, login) = (&self.roles.owner, &self.roles.login);
            if schema_exists {
                format!("cannot use the schema status_indexer: grant USAGE and CREATE on it to {owner}")
            } else {
                format!(
                    "cannot create the schema status_indexer: grant CREATE on the database to {owner}, \
                     the owner of the tables, or to {login}, or create an empty schema by `create \
                     schema status_indexer authorization {}`",
                    quote_ident(owner)
                )
            }
        })
    }

    /// Applies each step that is not recorded or not intact, in order. Returns their number.
    async fn apply_missing(
        &self,
        applied: &[i32],
        cutoff_secs: i64,
        ui: bool,
    ) -> anyhow::Result<usize> {
        let columns = Columns::of(&self.client, &self.tables).await?;
        let mut count = 0;
        let ui = ui || self.keeps_finish(applied).await?;
        let cutoff_secs = cutoff_secs.to_string();
        let view = columns.view(&self.tables, ui);
        let values = [("cutoff_secs", cutoff_secs.as_str()), ("view", &view)];
        for step in STEPS {
            if step.kind == Kind::UiIndex && !ui {
                continue;
            }
            let repeated = applied.contains(&step.version);
            if repeated && self.is_intact(step).await? {
                continue;
            }
            self.apply(step, &values, repeated)
                .await
                .with_context(|| format!("step {} failed", step.name))?;
            tracing::info!(step = step.name, repeated, "step applied");
            count += 1;
        }
        if ui && self.keep_finish().await? {
            tracing::info!(
                "the ends of runs are kept from now on; the column is valid after the next backfill"
            );
            count += 1;
        }
        if self.restore_view(&columns, ui).await? {
            tracing::info!("view created again");
            count += 1;
        }
        Ok(count)
    }

    /// Whether the ends of runs are kept.
    async fn keeps_finish(&self, applied: &[i32]) -> anyhow::Result<bool> {
        Ok(applied.contains(&STATE_VERSION) && keeps_finish(&self.client).await?)
    }

    /// Keeps the ends of runs from now on. Returns whether they were not kept before.
    async fn keep_finish(&self) -> anyhow::Result<bool> {
        const KEEP_FINISH: &str = "\
-- migrate.keep_finish
update status_indexer.state
   set keeps_finished_at = true;
select status_indexer.invalidate();";
        if self.keeps_finish(&[STATE_VERSION]).await? {
            return Ok(false);
        }
        self.in_transaction(KEEP_FINISH).await?;
        Ok(true)
    }

    /// Whether the objects of a recorded step still exist. Checks those that can be created again
    /// by themselves: triggers and indexes.
    async fn is_intact(&self, step: &Step) -> anyhow::Result<bool> {
        const TRIGGERS_INTACT: &str = "\
-- migrate.triggers_intact
select not exists (select
                     from status_indexer.triggers()
                    where table_name = $1
                      and state in ('missing', 'replaced'))";
        match step.kind {
            Kind::Transaction => Ok(true),
            Kind::Index | Kind::UiIndex => self.index_is_valid(step).await,
            Kind::Triggers => {
                let table = step.table(&self.tables).quoted();
                query_bool(&self.client, TRIGGERS_INTACT, &[(&table, Type::TEXT)]).await
            }
        }
    }

    /// Applies one step, and records it unless it is recorded already.
    async fn apply(
        &self,
        step: &Step,
        values: &[(&str, &str)],
        repeated: bool,
    ) -> anyhow::Result<()> {
        let sql = render(step.sql, &self.tables, values);
        let record = if repeated {
            String::new()
        } else {
            record(step)
        };
        match step.kind {
            Kind::Index | Kind::UiIndex => {
                self.build_index(step, &sql).await?;
                Ok(self.client.batch_execute(&record).await?)
            }
            Kind::Triggers if repeated => {
                let drop = self
                    .drop_triggers(&step.table(&self.tables).quoted())
                    .await?;
                // Evidence that was written without the triggers was not enqueued.
                self.in_transaction(&format!("{drop}{sql}\n{INVALIDATE}"))
                    .await
            }
            Kind::Transaction | Kind::Triggers => {
                self.in_transaction(&format!("{sql}\n{record}")).await
            }
        }
    }
}

/// Whether the ends of runs are kept, by the state.
pub(super) async fn keeps_finish(client: &Client) -> anyhow::Result<bool> {
    const KEEPS_FINISH: &str = "\
-- migrate.keeps_finish
select keeps_finished_at
  from status_indexer.state";
    query_bool(client, KEEPS_FINISH, &[]).await
}

/// The statement that records a step in the history.
fn record(step: &Step) -> String {
    format!(
        "insert into status_indexer.schema_history (version, name) values ({}, {});",
        step.version,
        quote_literal(step.name)
    )
}
