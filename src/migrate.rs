//! Installs, upgrades and removes the indexer's objects in the database.
//!
//! Promises: one migrator works at a time; each step is done whole or not at all, so that a crash
//! at any point is mended by running again; a statement that must lock a busy table gives up after
//! [`LOCK_TIMEOUT`] and tries again, so that nobody queues behind it for longer. Indexes are built
//! concurrently. `down` leaves the database as it was found.

mod grants;
mod report;
mod steps;
mod tables;

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use crate::error::chain;
use crate::pg::{
    Connector, LOCK_CLASS, MIGRATION_LOCK, SessionMode, SessionProfile, detect_mode, quote_ident,
    quote_literal,
};
use crate::store::INVALIDATE;
pub use report::status;
use steps::{DOWN_COLUMN, DOWN_SCHEMA, Kind, MIGRATIONS, Migration, Trigger};
pub use tables::{Table, TableNames, Tables, upstream_notify_triggers};

/// How long a statement waits for a lock on a table; everybody else queues behind it meanwhile.
pub const LOCK_TIMEOUT: Duration = Duration::from_millis(200);

/// The time between two tries, for the queue behind a lock to clear.
const RETRY: Duration = Duration::from_secs(1);

/// How often somebody who waits is told what for.
const TELL: Duration = Duration::from_secs(5);

/// The step that makes the column.
const COLUMN_VERSION: i32 = 2;

/// The oldest server that knows all that is used, as `server_version_num`.
const OLDEST_SERVER: i32 = 120_000;

/// What `up` is to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Upstream's tables, as configured.
    pub names: TableNames,
    /// The cutoff to install with, seconds.
    pub cutoff_secs: i64,
    /// A role that `run` will use, if not the owner.
    pub grant_to: Option<String>,
}

/// Brings the objects to this binary's version.
///
/// # Errors
/// If the tables are not found, the role may not change them, or a step fails. What was done
/// before the failing step stays, and the next run goes on from there.
pub async fn up(
    connector: &Connector,
    options: &Options,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut migrator = Migrator::open(connector, &options.names, stop).await?;
    migrator.check_installed_for_same_tables().await?;
    let done = migrator.applied().await?;
    migrator.check_column_is_free(&done).await?;
    migrator.prepare_schema().await?;
    let mut count = 0;
    for migration in MIGRATIONS {
        let again = done.contains(&migration.version);
        if again && migrator.still_there(migration).await? {
            continue;
        }
        migrator
            .apply(migration, options.cutoff_secs, again)
            .await?;
        tracing::info!(step = migration.name, again, "migrated");
        count += 1;
    }
    if let Some(role) = &options.grant_to {
        grants::grant(&migrator.client, &migrator.tables, role).await?;
        tracing::info!(role, "granted what `run` needs");
    }
    if upstream_notify_triggers(&migrator.client, &migrator.tables.runs.quoted()).await? {
        tracing::warn!(
            "upstream's notify_ui trigger fires on every update of the runs table: each status \
             written sends one of its messages; the first pass keeps to a rate"
        );
    }
    if count == 0 {
        tracing::info!("nothing to do: the objects are up to date");
    }
    Ok(())
}

/// Removes every trace of the indexer from the database. Safe to run again after a crash.
///
/// # Errors
/// If the tables are not found, the role may not change them, or a step fails.
pub async fn down(
    connector: &Connector,
    names: &TableNames,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let migrator = Migrator::open(connector, names, stop).await?;
    migrator.check_installed_for_same_tables().await?;
    migrator.remove_triggers().await?;
    for index in steps::indexes() {
        let name = migrator.index_name(index);
        migrator.drop_index(&name).await?;
    }
    grants::revoke(&migrator.client).await?;
    migrator.remove_objects().await?;
    tracing::info!("removed");
    Ok(())
}

struct Migrator<'a> {
    connector: &'a Connector,
    client: Client,
    tables: Tables,
    stop: &'a CancellationToken,
}

impl<'a> Migrator<'a> {
    async fn open(
        connector: &'a Connector,
        names: &TableNames,
        stop: &'a CancellationToken,
    ) -> anyhow::Result<Self> {
        // A pooler would lend our settings to its other clients, and the lock to nobody.
        ensure!(
            detect_mode(connector).await? == SessionMode::Session,
            "migrations need a session of their own, and this is a pooler in transaction mode: \
             connect to the database itself"
        );
        let client = connector.connect(SessionProfile::Migration).await?;
        let version: String = client
            .query_one("show server_version_num", &[])
            .await
            .context("cannot ask for the server's version")?
            .get(0);
        let version: i32 = version
            .parse()
            .context("the server's version is no number")?;
        ensure!(
            version >= OLDEST_SERVER,
            "PostgreSQL 12 or later is needed; this server is {}",
            version / 10_000
        );
        client.batch_execute("begin read only").await?;
        let tables = Tables::find(&client, names).await?;
        client.batch_execute("rollback").await?;
        tables.check_owned(&client).await?;
        let migrator = Self {
            connector,
            client,
            tables,
            stop,
        };
        migrator.lock().await?;
        Ok(migrator)
    }

    /// Waits to be the only migrator. Polls: a statement that waits would hold a snapshot, which an
    /// index being built by the other one waits for.
    async fn lock(&self) -> anyhow::Result<()> {
        const LOCK: &str = "-- migrate.lock\nselect pg_try_advisory_lock($1, $2)";
        let keys = [
            (&LOCK_CLASS as _, Type::INT4),
            (&MIGRATION_LOCK as _, Type::INT4),
        ];
        let mut logged = false;
        while !self
            .client
            .query_typed_one(LOCK, &keys)
            .await?
            .get::<_, bool>(0)
        {
            if !std::mem::replace(&mut logged, true) {
                tracing::info!("another migration is running; waiting for it");
            }
            self.pause(RETRY).await?;
        }
        Ok(())
    }

    async fn pause(&self, wait: Duration) -> anyhow::Result<()> {
        if self
            .stop
            .run_until_cancelled(tokio::time::sleep(wait))
            .await
            .is_none()
        {
            bail!("stopped; run it again to go on");
        }
        Ok(())
    }

    async fn exists(&self, relation: &str) -> anyhow::Result<bool> {
        let row = self
            .client
            .query_typed_one(
                "-- migrate.exists\nselect to_regclass($1) is not null",
                &[(&relation, Type::TEXT)],
            )
            .await?;
        Ok(row.get(0))
    }

    async fn check_installed_for_same_tables(&self) -> anyhow::Result<()> {
        if !self.exists("status_indexer.state").await? {
            return Ok(());
        }
        let row = self
            .client
            .query_opt(
                "-- migrate.installed_for\nselect runs_table, metadata_table from status_indexer.state",
                &[],
            )
            .await?;
        let Some(row) = row else { return Ok(()) };
        let (runs, metadata): (String, String) = (row.get(0), row.get(1));
        ensure!(
            runs == self.tables.runs.quoted() && metadata == self.tables.metadata.quoted(),
            "the indexer is installed for {runs} and {metadata}, but is configured for {} and {}: \
             set DB_TABLE_NAME_RUNS and DB_TABLE_NAME_METADATA to what they were, or run \
             `migrate down` with those first",
            self.tables.runs.quoted(),
            self.tables.metadata.quoted()
        );
        Ok(())
    }

    /// A column of that name which somebody else made is theirs.
    async fn check_column_is_free(&self, done: &[i32]) -> anyhow::Result<()> {
        if !done.contains(&COLUMN_VERSION) {
            ensure!(
                !self.column_exists().await?,
                "{} has a column run_status already, which is not the indexer's: rename or drop it first",
                self.tables.runs.quoted()
            );
        }
        Ok(())
    }

    async fn column_exists(&self) -> anyhow::Result<bool> {
        let row = self
            .client
            .query_typed_one(
                "-- migrate.column_exists
select exists (select
                 from pg_attribute
                where attrelid = to_regclass($1)
                  and attname = 'run_status'
                  and not attisdropped)",
                &[(&self.tables.runs.quoted(), Type::TEXT)],
            )
            .await?;
        Ok(row.get(0))
    }

    /// Makes the schema and the history where they are not there.
    async fn prepare_schema(&self) -> anyhow::Result<()> {
        let there: bool = self
            .client
            .query_one(
                "-- migrate.schema\nselect exists (select from pg_namespace where nspname = 'status_indexer')",
                &[],
            )
            .await?
            .get(0);
        if self.exists("status_indexer.schema_history").await? {
            return Ok(());
        }
        let create = if there {
            ""
        } else {
            "create schema status_indexer;"
        };
        self.client
            .batch_execute(&format!(
                "-- migrate.prepare
                 begin;
                 {create}
                 create table status_indexer.schema_history (
                   version    integer primary key,
                   name       text not null,
                   applied_at timestamptz not null default clock_timestamp(),
                   -- On the first row: an operator made the schema, and keeps it.
                   schema_was_there boolean not null default false
                 );
                 insert into status_indexer.schema_history (version, name, schema_was_there)
                 values (0, 'schema', {there});
                 commit;"
            ))
            .await
            .context(
                "cannot create the schema: the role needs CREATE on the database, or an empty \
                 schema `status_indexer` of its own",
            )?;
        Ok(())
    }

    async fn applied(&self) -> anyhow::Result<Vec<i32>> {
        if !self.exists("status_indexer.schema_history").await? {
            return Ok(Vec::new());
        }
        let rows = self
            .client
            .query(
                "-- migrate.applied\nselect version from status_indexer.schema_history",
                &[],
            )
            .await?;
        let versions: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
        let newest = MIGRATIONS.last().map_or(0, |step| step.version);
        if let Some(newer) = versions.iter().find(|version| **version > newest) {
            bail!(
                "the database is at step {newer}, newer than this binary's {newest}: use the newer binary"
            );
        }
        Ok(versions)
    }

    fn render(&self, sql: &str, cutoff_secs: i64, schema_was_there: bool) -> String {
        let runs = self.tables.runs.quoted();
        let metadata = self.tables.metadata.quoted();
        // The names last, and in one go each: what they contain is not looked at again.
        let sql = sql
            .replace("{{triggers}}", &steps::trigger_catalog())
            .replace("{{cutoff_secs}}", &cutoff_secs.to_string())
            .replace("{{schema_was_there}}", &schema_was_there.to_string());
        let mut rendered = String::with_capacity(sql.len());
        let mut rest = sql.as_str();
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, after) = after.split_once("}}").expect("a placeholder is closed");
            rendered.push_str(before);
            rendered.push_str(&match name {
                "runs" => runs.clone(),
                "metadata" => metadata.clone(),
                "runs_literal" => quote_literal(&runs),
                "metadata_literal" => quote_literal(&metadata),
                other => unreachable!("the migrations have no placeholder {other}"),
            });
            rest = after;
        }
        rendered.push_str(rest);
        rendered
    }

    /// Whether what a step made is there yet, where it is known that people drop it.
    async fn still_there(&self, migration: &Migration) -> anyhow::Result<bool> {
        match migration.kind {
            Kind::Transaction => Ok(true),
            Kind::Index => self.index_is_valid(&self.index_name(migration)).await,
            Kind::Triggers => {
                let table = self.table_of(migration).quoted();
                let row = self
                    .client
                    .query_typed_one(
                        "-- migrate.triggers_there
select not exists (select
                     from status_indexer.triggers()
                    where table_name = $1
                      and state in ('missing', 'replaced'))",
                        &[(&table, Type::TEXT)],
                    )
                    .await?;
                Ok(row.get(0))
            }
        }
    }

    async fn apply(
        &mut self,
        migration: &Migration,
        cutoff_secs: i64,
        again: bool,
    ) -> anyhow::Result<()> {
        let sql = self.render(migration.sql, cutoff_secs, false);
        let record = if again {
            String::new()
        } else {
            format!(
                "insert into status_indexer.schema_history (version, name) values ({}, {});",
                migration.version,
                quote_literal(migration.name)
            )
        };
        let outcome = match migration.kind {
            Kind::Transaction => self.in_transaction(&format!("{sql}\n{record}")).await,
            Kind::Triggers if again => {
                let drop: String = migration
                    .triggers()
                    .map(|trigger| trigger.drop_statement())
                    .collect();
                let drop = self.render(&drop, cutoff_secs, false);
                // Evidence written while they were missing was not reported.
                self.in_transaction(&format!("{drop}{sql}\n{INVALIDATE}"))
                    .await
            }
            Kind::Triggers => self.in_transaction(&format!("{sql}\n{record}")).await,
            Kind::Index => {
                self.build_index(&self.index_name(migration), &sql, &record)
                    .await
            }
        };
        outcome.with_context(|| format!("migration {} failed", migration.name))
    }

    fn table_of(&self, migration: &Migration) -> &Table {
        if migration.sql.contains("{{runs}}") {
            &self.tables.runs
        } else {
            &self.tables.metadata
        }
    }

    fn index_name(&self, migration: &Migration) -> String {
        let schema = quote_ident(&self.tables.runs.schema);
        format!("{schema}.{}", migration.index())
    }

    /// Removes the triggers before the functions that they execute. From here on statuses become
    /// outdated; readers have to see that even if the rest fails, so the column is invalidated.
    async fn remove_triggers(&self) -> anyhow::Result<()> {
        let invalidate = if self.exists("status_indexer.state").await? {
            INVALIDATE
        } else {
            ""
        };
        let drop: String = MIGRATIONS
            .iter()
            .flat_map(Migration::triggers)
            .map(|trigger: Trigger| trigger.drop_statement())
            .collect();
        let sql = self.render(&drop, 0, false);
        self.remove(&format!("{sql}\n{invalidate}")).await
    }

    async fn remove_objects(&self) -> anyhow::Result<()> {
        let ours = self.applied().await?.contains(&COLUMN_VERSION);
        let column = if ours { DOWN_COLUMN } else { "" };
        let keep_schema = self.operator_made_schema().await?;
        self.remove(&self.render(&format!("{column}\n{DOWN_SCHEMA}"), 0, keep_schema))
            .await
    }

    async fn remove(&self, sql: &str) -> anyhow::Result<()> {
        self.in_transaction(sql)
            .await
            .context("could not remove all of it; what is left is removed by running it again")
    }

    async fn operator_made_schema(&self) -> anyhow::Result<bool> {
        if !self.exists("status_indexer.schema_history").await? {
            return Ok(false);
        }
        let row = self
            .client
            .query_one(
                "-- migrate.operator_made_schema
                 select coalesce(bool_or(schema_was_there), false) from status_indexer.schema_history",
                &[],
            )
            .await?;
        Ok(row.get(0))
    }

    /// Runs statements as one transaction, again and again until the locks could be had.
    async fn in_transaction(&self, sql: &str) -> anyhow::Result<()> {
        let whole = format!(
            "begin isolation level read committed;\nset local lock_timeout = {};\n{sql}\ncommit;",
            LOCK_TIMEOUT.as_millis()
        );
        let mut told = None;
        loop {
            let Err(error) = self.client.batch_execute(&whole).await else {
                return Ok(());
            };
            // The server is in a failed transaction, or has none.
            let _ = self.client.batch_execute("rollback").await;
            let code = error.code().map_or("", |code| code.code());
            // A lock timeout; or a deadlock, that the server ended at our expense.
            if !matches!(code, "55P03" | "40P01") {
                return Err(error.into());
            }
            if told.is_none_or(|at: std::time::Instant| at.elapsed() > TELL) {
                told = Some(std::time::Instant::now());
                // Awaited outside the macro, whose arguments may not cross threads.
                let holders = self.holders().await;
                tracing::info!(holders, "the tables are in use; trying again every second");
            }
            self.pause(RETRY).await?;
        }
    }

    /// Who holds locks on the tables, for people.
    async fn holders(&self) -> String {
        const HOLDERS: &str = "\
-- migrate.holders
select string_agg(distinct format('pid %s (%s, %s, for %s)', a.pid, a.usename, a.state,
                                  date_trunc('second', clock_timestamp() - a.xact_start)), ', ')
  from pg_locks l
  join pg_stat_activity a on a.pid = l.pid
 where l.relation in (to_regclass($1), to_regclass($2))
   and l.granted
   and a.pid <> pg_backend_pid()
   and clock_timestamp() - a.xact_start > interval '200 ms'";
        let names = (self.tables.runs.quoted(), self.tables.metadata.quoted());
        self.client
            .query_typed_one(HOLDERS, &[(&names.0, Type::TEXT), (&names.1, Type::TEXT)])
            .await
            .ok()
            .and_then(|row| row.get::<_, Option<String>>(0))
            .unwrap_or_else(|| "short transactions".to_owned())
    }

    async fn build_index(&self, name: &str, sql: &str, record: &str) -> anyhow::Result<()> {
        if !self.index_is_valid(name).await? {
            // What a build that was interrupted left behind is updated and never read.
            self.drop_index(name).await?;
            self.watched(sql).await?;
        }
        self.client.batch_execute(record).await?;
        Ok(())
    }

    async fn index_is_valid(&self, name: &str) -> anyhow::Result<bool> {
        let row = self
            .client
            .query_typed_opt(
                "-- migrate.index_is_valid\nselect indisvalid from pg_index where indexrelid = to_regclass($1)",
                &[(&name, Type::TEXT)],
            )
            .await?;
        Ok(row.is_some_and(|row| row.get(0)))
    }

    async fn drop_index(&self, name: &str) -> anyhow::Result<()> {
        if self.exists(name).await? {
            self.watched(&format!("drop index concurrently {name}"))
                .await?;
        }
        Ok(())
    }

    /// Runs a statement that takes as long as it takes, and tells how far it is.
    async fn watched(&self, sql: &str) -> anyhow::Result<()> {
        const PROGRESS: &str = "\
-- migrate.progress
select format('%s, %s%% of blocks%s', phase, coalesce(100 * blocks_done / nullif(blocks_total, 0), 0),
              case when current_locker_pid > 0 then format(', waiting for pid %s', current_locker_pid) end)
  from pg_stat_progress_create_index
 where datname = current_database()";
        let cancel = self.client.cancel_token();
        let work = self.client.batch_execute(sql);
        tokio::pin!(work);
        let watcher = self.connector.connect(SessionProfile::Reader).await?;
        loop {
            tokio::select! {
                done = &mut work => return Ok(done?),
                () = self.stop.cancelled() => {
                    cancel.cancel_query(self.connector.tls()).await.ok();
                    // The request is sent, not obeyed yet: without this the server may go on by itself.
                    tokio::time::timeout(TELL, work).await.ok();
                    bail!("stopped; run it again to go on");
                }
                () = tokio::time::sleep(TELL) => {
                    match watcher.query_opt(PROGRESS, &[]).await {
                        Ok(Some(row)) => tracing::info!(progress = row.get::<_, String>(0), "at work on an index"),
                        Ok(None) => tracing::info!("at work on an index"),
                        Err(error) => tracing::debug!(error = chain(&error), "no progress to be had"),
                    }
                }
            }
        }
    }
}
