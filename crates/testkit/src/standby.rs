//! A standby of a test's server, made by `pg_basebackup` and kept current by streaming.
//!
//! Owns a directory of programs in which `initdb` copies the primary instead of creating a cluster,
//! so that the standby is guarded and removed like any other server. Promises a standby that
//! answers queries; a test that needs recent data calls [`Standby::catches_up`].

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use crate::postgres::{Options, Postgres};
use tempfile::TempDir;
use tokio_postgres::{Client, Config};

use crate::database::connect;
use crate::requirement::left_out;
use crate::wait::eventually;

/// A running standby.
#[derive(Debug)]
pub struct Standby {
    server: Postgres,
    _programs: TempDir,
}

impl Standby {
    /// A standby of this server. Without a suitable `pg_basebackup` on this machine there is none,
    /// and the rest of the test is reported as left out.
    ///
    /// # Panics
    /// If it cannot be started.
    pub async fn of(primary: &Postgres) -> Option<Self> {
        let copier = primary
            .client_program("pg_basebackup")
            .inspect_err(|reason| left_out(reason))
            .ok()?;
        let directory = tempfile::tempdir().expect("a temporary directory");
        // The server may run as another user.
        mode(directory.path());
        let (copier, real) = (copier.display(), primary.programs().display());
        let (host, port) = (primary.host(), primary.port());
        let login = format!("host={host} port={port} user=postgres");
        // The program writes parameters of its own version, which an older server may not know; the
        // last line counts.
        let copy = format!(
            "{copier} -D \"$2\" -R -X stream -c fast -d '{login}' &&
             echo \"primary_conninfo = '{login}'\" >>\"$2/postgresql.auto.conf\""
        );
        program(directory.path(), "initdb", &copy);
        let serve = format!("exec {real}/postgres \"$@\"");
        program(directory.path(), "postgres", &serve);
        let options = Options {
            programs: Some(directory.path().to_owned()),
            ..Options::default()
        };
        Some(Self {
            server: Postgres::start(options)
                .await
                .expect("a standby of our own"),
            _programs: directory,
        })
    }

    /// A connection URI of the superuser.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        self.server.url(database)
    }

    /// The parameters of the superuser's connections.
    #[must_use]
    pub fn config(&self, database: &str) -> Config {
        self.server.config(database)
    }

    /// A plain connection of the superuser.
    pub async fn client(&self, database: &str) -> Client {
        connect(&self.config(database)).await
    }

    /// Stops it and removes its directory.
    ///
    /// # Panics
    /// If it does not stop.
    pub async fn stop(self) {
        self.server.stop().await.expect("it stops");
    }

    /// Waits until everything that is committed on the primary by now has been replayed.
    ///
    /// # Panics
    /// If that does not happen.
    pub async fn catches_up(&self, primary: &Client) {
        // The daemon commits asynchronously: its last commits may not be flushed yet, and are
        // flushed before this synchronous one.
        const MARK: &str = "select pg_logical_emit_message(true, 'mark', '')";
        const WRITTEN: &str = "select pg_current_wal_flush_lsn()::text";
        const REPLAYED: &str = "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
        let marked = primary.batch_execute(MARK).await;
        marked.expect("tests are superuser");
        let row = primary.query_one(WRITTEN, &[]).await;
        let written: String = row.expect("it is a primary").get(0);
        let client = self.client("postgres").await;
        eventually(Duration::from_secs(30), "it is replayed", async || {
            let row = client.query_one(REPLAYED, &[&written]).await;
            row.expect("it is a standby").get(0)
        })
        .await;
    }
}

fn program(directory: &Path, name: &str, command: &str) {
    let path = directory.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{command}\n")).expect("a directory of our own");
    mode(&path);
}

fn mode(path: &Path) {
    let permissions = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, permissions).expect("the file is ours");
}
