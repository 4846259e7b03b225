//! A database of its own for every test.
//!
//! Owns the server that the tests of this process share, and the template with upstream's tables.
//! Promises that tests see nothing of each other: channels, locks and tables are per database.
//! Databases are dropped at the end of their test where possible; the server ends with the process
//! in any case. Called by nearly every test.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::postgres::{Options, Postgres};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, Config, NoTls};

use crate::writer::Writer;

/// Upstream's six tables after all of upstream's migrations.
pub const UPSTREAM: &str = include_str!("upstream.sql");

const TEMPLATE: &str = "upstream_template";

static SHARED: OnceCell<Postgres> = OnceCell::const_new();
static COUNTER: AtomicU32 = AtomicU32::new(1);

/// The server for tests that do not crash or reconfigure it.
///
/// # Panics
/// If it cannot be started.
pub async fn shared() -> &'static Postgres {
    SHARED
        .get_or_init(async || {
            let server = Postgres::start(Options::default())
                .await
                .expect("tests need a PostgreSQL server");
            create(&server, TEMPLATE, "template0").await;
            let client = connect(&server.config(TEMPLATE)).await;
            client
                .batch_execute(UPSTREAM)
                .await
                .expect("upstream's tables on an empty database");
            server
        })
        .await
}

/// A database of a test.
#[derive(Debug)]
pub struct Database {
    name: String,
    config: Config,
    url: String,
    /// Where to drop the database at the end; none on a server that is removed as a whole.
    admin: Option<Config>,
}

impl Database {
    /// A new database with upstream's tables, on the shared server.
    pub async fn fresh() -> Self {
        Self::on_shared(TEMPLATE).await
    }

    /// A new database with upstream's tables, on a server of the test's own.
    ///
    /// # Panics
    /// If the tables cannot be created.
    pub async fn on(server: &Postgres) -> Self {
        let database = Self::named(server, None);
        create(server, &database.name, "template0").await;
        database.create_tables().await
    }

    /// A new database without any table, on the shared server.
    pub async fn empty() -> Self {
        Self::on_shared("template0").await
    }

    /// A new database with upstream's tables, on the shared server, whose texts may have any bytes.
    ///
    /// # Panics
    /// If the tables cannot be created.
    pub async fn sql_ascii() -> Self {
        let template = "template0 encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C'";
        Self::on_shared(template).await.create_tables().await
    }

    /// A new database with upstream's tables, on the shared server, whose collation has a version: that of
    /// the ICU library. PostgreSQL 15 or later.
    ///
    /// # Panics
    /// If the server was built without ICU.
    pub async fn icu() -> Self {
        let template = "template0 encoding 'UTF8' locale_provider icu icu_locale 'und' locale 'C'";
        Self::on_shared(template).await.create_tables().await
    }

    async fn on_shared(template: &str) -> Self {
        let server = shared().await;
        let database = Self::named(server, Some(server.config("postgres")));
        create(server, &database.name, template).await;
        database
    }

    async fn create_tables(self) -> Self {
        let client = self.client().await;
        let created = client.batch_execute(UPSTREAM).await;
        created.expect("upstream's tables on an empty database");
        self
    }

    fn named(server: &Postgres, admin: Option<Config>) -> Self {
        let name = format!("test_{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        Self {
            config: server.config(&name),
            url: server.url(&name),
            name,
            admin,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A connection URI of the superuser.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URI with another host and port, such as a proxy's.
    #[must_use]
    pub fn url_through(&self, address: std::net::SocketAddr) -> String {
        format!("postgresql://postgres@{address}/{}", self.name)
    }

    /// Connection parameters of the superuser, for the test to change.
    #[must_use]
    pub fn config(&self) -> Config {
        self.config.clone()
    }

    /// A plain connection, driven by a task of the test's runtime.
    pub async fn client(&self) -> Client {
        connect(&self.config).await
    }

    /// A connection that writes as the metadata service does.
    pub async fn writer(&self) -> Writer {
        Writer::new(self.client().await)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Some(admin) = self.admin.take() else {
            return;
        };
        let name = std::mem::take(&mut self.name);
        // The test's runtime may be executing this: the drop needs another.
        let dropper = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let client = connect(&admin).await;
                tokio::time::timeout(Duration::from_secs(5), drop_database(&client, &name)).await
            })??;
            anyhow::Ok(())
        });
        // Best effort: the server itself is removed at the end.
        let _ = dropper.join();
    }
}

/// Connects, and drives the connection in a task.
///
/// # Panics
/// If the server refuses.
pub async fn connect(config: &Config) -> Client {
    let (client, connection) = config
        .connect(NoTls)
        .await
        .expect("the test's server accepts connections");
    // It ends with an error when the test kills the server; the client reports that as well.
    tokio::spawn(async { drop(connection.await) });
    client
}

/// Drops a database and ends the sessions in it. Before PostgreSQL 13, `drop database` itself cannot
/// end them.
///
/// # Errors
/// If the database does not exist, or its sessions do not end.
pub async fn drop_database(admin: &Client, name: &str) -> Result<(), tokio_postgres::Error> {
    const END_SESSIONS: &str = "\
select pg_terminate_backend(pid)
  from pg_stat_activity
 where datname = $1";
    // A daemon that still runs would connect again.
    let close = format!("alter database {name} allow_connections false");
    admin.batch_execute(&close).await?;
    admin.execute(END_SESSIONS, &[&name]).await?;
    // Waits up to five seconds for the sessions to end.
    admin.batch_execute(&format!("drop database {name}")).await
}

async fn create(server: &Postgres, name: &str, template: &str) {
    let admin = connect(&server.config("postgres")).await;
    let statement = format!("create database {name} template {template}");
    admin
        .batch_execute(&statement)
        .await
        .expect("a fresh name and an unused template");
}
