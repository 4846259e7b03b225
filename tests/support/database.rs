//! A database of its own for every test.
//!
//! Owns the server that the tests of this process share and the template with upstream's tables.
//! Promises that tests see nothing of each other: channels, locks and tables are per database.
//! Databases are dropped at the end of their test as far as possible; the server goes with the
//! process whatever happens.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use status_indexer::demo::postgres::{Options, Postgres};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, Config, NoTls};

use super::writer::Writer;

/// Upstream's six tables after all of upstream's migrations.
pub(crate) const UPSTREAM: &str = include_str!("../../src/demo/upstream.sql");

const TEMPLATE: &str = "upstream_template";

static SHARED: OnceCell<Postgres> = OnceCell::const_new();
static COUNTER: AtomicU32 = AtomicU32::new(1);

/// The server that tests share which do not harm it.
pub(crate) async fn shared() -> &'static Postgres {
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

/// A database with upstream's tables and nothing else.
pub(crate) struct Database {
    name: String,
    config: Config,
    url: String,
    /// Where to drop the database at the end; none on a server that goes itself.
    admin: Option<Config>,
}

impl Database {
    /// A new database on the shared server.
    pub(crate) async fn fresh() -> Self {
        let server = shared().await;
        let database = Self::named(server, Some(server.config("postgres")));
        create(server, &database.name, TEMPLATE).await;
        database
    }

    /// A new database on a server that the test has to itself.
    pub(crate) async fn on(server: &Postgres) -> Self {
        let database = Self::named(server, None);
        create(server, &database.name, "template0").await;
        database
            .client()
            .await
            .batch_execute(UPSTREAM)
            .await
            .expect("upstream's tables on an empty database");
        database
    }

    /// A new database without any table, on the shared server.
    pub(crate) async fn empty() -> Self {
        let server = shared().await;
        let database = Self::named(server, Some(server.config("postgres")));
        create(server, &database.name, "template0").await;
        database
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

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A connection URI of the superuser.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The URI with another host and port in it, such as a proxy's.
    pub(crate) fn url_through(&self, address: std::net::SocketAddr) -> String {
        format!("postgresql://postgres@{address}/{}", self.name)
    }

    /// Connection parameters of the superuser, to be changed by the test.
    pub(crate) fn config(&self) -> Config {
        self.config.clone()
    }

    /// A plain connection, driven by a task of the test's runtime.
    pub(crate) async fn client(&self) -> Client {
        connect(&self.config).await
    }

    /// A connection that writes as the metadata service does.
    pub(crate) async fn writer(&self) -> Writer {
        Writer::new(self.client().await)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Some(admin) = self.admin.take() else {
            return;
        };
        let statement = format!("drop database if exists {} with (force)", self.name);
        // The test's runtime may be the one that runs this: the drop needs another.
        let dropper = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let client = connect(&admin).await;
                tokio::time::timeout(Duration::from_secs(5), client.batch_execute(&statement)).await
            })??;
            anyhow::Ok(())
        });
        // Best effort: the server itself is removed in the end.
        let _ = dropper.join();
    }
}

/// Connects, and drives the connection in a task.
pub(crate) async fn connect(config: &Config) -> Client {
    let (client, connection) = config
        .connect(NoTls)
        .await
        .expect("the test's server takes connections");
    // It ends with an error when the test kills the server, which the client's user sees as well.
    tokio::spawn(async { drop(connection.await) });
    client
}

async fn create(server: &Postgres, name: &str, template: &str) {
    let admin = connect(&server.config("postgres")).await;
    let statement = format!("create database {name} template {template}");
    admin
        .batch_execute(&statement)
        .await
        .expect("a fresh name and an unused template");
}
