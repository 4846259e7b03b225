//! The migrator's session: its connection, its lock, and its transactions.
//!
//! Promises that only one migrator works at a time, and that a transaction which cannot get its
//! locks within [`LOCK_TIMEOUT`] gives up and retries. Used by `up` and `down`.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use super::owner::Roles;
use super::query::{query_bool, query_one, transaction};
use super::tables::{TableNames, Tables};
use crate::pg::{Connector, LOCK_CLASS, MIGRATION_LOCK, SessionMode, SessionProfile, detect_mode};

/// How long a statement waits for a lock on a table. Meanwhile other sessions queue behind it.
pub const LOCK_TIMEOUT: Duration = Duration::from_millis(200);

/// The time between two attempts. The sessions that queued behind a lock proceed meanwhile.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The time between two log lines about the same wait.
pub(super) const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// The oldest supported server, a major version.
pub const OLDEST_SERVER: i32 = 12;

/// The newest server that `make test-versions` tests, a major version. Newer ones are not refused.
pub const NEWEST_TESTED_SERVER: i32 = 18;

/// The error of a migrator that was asked to stop.
pub(super) const STOPPED: &str = "stopped: run the same command again to continue";

/// A session that holds the migration lock.
pub(super) struct Migrator<'a> {
    pub(super) connector: &'a Connector,
    pub(super) client: Client,
    pub(super) tables: Tables,
    pub(super) roles: Roles,
    pub(super) stop: &'a CancellationToken,
}

impl<'a> Migrator<'a> {
    /// Connects, finds the tables, and waits for the lock.
    pub(super) async fn open(
        connector: &'a Connector,
        names: &TableNames,
        stop: &'a CancellationToken,
    ) -> anyhow::Result<Self> {
        // A transaction pooler passes the session's settings on to its other clients, and the lock
        // would not be held by this migrator.
        ensure!(
            detect_mode(connector).await? == SessionMode::Session,
            "migrations need a session, but this connection goes through a pooler in transaction \
             mode: connect to PostgreSQL itself"
        );
        let client = connector.connect(SessionProfile::Migration).await?;
        check_server_version(&client).await?;
        client.batch_execute("begin read only").await?;
        let tables = Tables::find(&client, names).await?;
        client.batch_execute("rollback").await?;
        let roles = Roles::check(&client, &tables).await?;
        let migrator = Self {
            connector,
            client,
            tables,
            roles,
            stop,
        };
        migrator.lock().await?;
        Ok(migrator)
    }

    /// Waits for the lock that admits one migrator. Polls, because a statement that waits holds a
    /// snapshot, and the index build of the other migrator would wait for that snapshot to end.
    async fn lock(&self) -> anyhow::Result<()> {
        const LOCK: &str = "\
-- migrate.lock
select pg_try_advisory_lock($1, $2)";
        let keys = [
            (&LOCK_CLASS as _, Type::INT4),
            (&MIGRATION_LOCK as _, Type::INT4),
        ];
        let mut logged = false;
        while !query_bool(&self.client, LOCK, &keys).await? {
            if !std::mem::replace(&mut logged, true) {
                tracing::info!("waiting for another migration to end");
            }
            self.pause().await?;
        }
        Ok(())
    }

    /// Waits until the next attempt.
    async fn pause(&self) -> anyhow::Result<()> {
        let sleep = tokio::time::sleep(RETRY_INTERVAL);
        if self.stop.run_until_cancelled(sleep).await.is_none() {
            bail!(STOPPED);
        }
        Ok(())
    }

    /// Runs statements in one transaction, and retries until it gets its locks.
    pub(super) async fn in_transaction(&self, statements: &str) -> anyhow::Result<()> {
        let statements = format!(
            "set local lock_timeout = {};\n{statements}",
            LOCK_TIMEOUT.as_millis()
        );
        let mut logged: Option<Instant> = None;
        loop {
            let Err(error) = transaction(&self.client, &statements).await else {
                return Ok(());
            };
            if !is_lock_conflict(&error) {
                return Err(error.into());
            }
            if logged.is_none_or(|at| at.elapsed() > LOG_INTERVAL) {
                logged = Some(Instant::now());
                // A separate statement: the arguments of the macro are not `Send`, so the future
                // would not be either if it awaited among them.
                let holders = self.holders().await?;
                tracing::info!(
                    holders,
                    "waiting for locks on the tables; retrying every second"
                );
            }
            self.pause().await?;
        }
    }

    /// The sessions that hold locks on the tables, for the log. The role that logged in may see more
    /// of them than the owner of the tables.
    async fn holders(&self) -> anyhow::Result<String> {
        const ROLE: &str = "\
-- migrate.current_role
select current_user::text";
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
        let (runs, metadata) = (self.tables.runs.quoted(), self.tables.metadata.quoted());
        let names = [(&runs as _, Type::TEXT), (&metadata as _, Type::TEXT)];
        let role: String = query_one(&self.client, ROLE, &[]).await?.get(0);
        self.become_login().await?;
        let holders = query_one(&self.client, HOLDERS, &names).await;
        if role == self.roles.owner {
            self.become_owner().await?;
        }
        let holders: Option<String> = holders?.get(0);
        Ok(holders.unwrap_or_else(|| "short transactions".to_owned()))
    }
}

async fn check_server_version(client: &Client) -> anyhow::Result<()> {
    const SERVER_VERSION: &str = "\
-- migrate.server_version
select current_setting('server_version_num')::integer";
    let number: i32 = query_one(client, SERVER_VERSION, &[]).await?.get(0);
    if let Some(warning) = untested(number / 10_000)? {
        tracing::warn!("{warning}");
    }
    Ok(())
}

/// What to log about a server of this major version, which is an error if it is too old.
pub(super) fn untested(major: i32) -> anyhow::Result<Option<String>> {
    ensure!(
        major >= OLDEST_SERVER,
        "the server is PostgreSQL {major}: upgrade it to version {OLDEST_SERVER} or later"
    );
    Ok((major > NEWEST_TESTED_SERVER).then(|| {
        format!(
            "not tested with PostgreSQL {major}: the tested versions are {OLDEST_SERVER} to \
             {NEWEST_TESTED_SERVER}"
        )
    }))
}

/// Whether a lock was not granted in time, or the server ended a deadlock by cancelling this
/// transaction.
fn is_lock_conflict(error: &tokio_postgres::Error) -> bool {
    matches!(
        error.code(),
        Some(&SqlState::LOCK_NOT_AVAILABLE | &SqlState::T_R_DEADLOCK_DETECTED)
    )
}

#[cfg(test)]
mod tests {
    use super::untested;

    #[test]
    fn older_servers_are_refused_and_newer_ones_only_reported() {
        let refusal = untested(11).expect_err("it is too old").to_string();
        assert!(refusal.contains("upgrade it to version 12"), "{refusal}");
        for tested in 12..=18 {
            assert_eq!(untested(tested).expect("it is supported"), None);
        }
        let warning = untested(19).expect("it is not refused");
        let warning = warning.expect("it is not tested");
        assert!(
            warning.starts_with("not tested with PostgreSQL 19"),
            "{warning}"
        );
    }
}
