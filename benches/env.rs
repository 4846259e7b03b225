//! Where the benchmarks run: a private server with durable settings, its databases, the daemon.
//!
//! Owns the server and the database with the large dataset, which the benchmarks of one invocation
//! share. Promises each benchmark the database that it needs: with the indexer installed and the
//! column valid, or without the indexer. Called by every benchmark.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testkit::postgres::{Options, Postgres};
use tokio::time::sleep;
use tokio_postgres::Client;

use crate::Settings;
use crate::dataset;
use crate::usage::memory_mib;
use testkit::daemon::{Daemon, Launch};
use testkit::database::{Database, connect};
use testkit::wait::poll;

/// A day: runs of the dataset without a writer keep their status for as long as any benchmark runs.
pub(crate) const LONG_CUTOFF_SECS: u32 = 86_400;

/// How long a backfill of a large dataset may take.
const TIMEOUT: Duration = Duration::from_secs(1200);

/// The extension that counts the cost of statements; most packages of the server contain it.
const STATEMENTS: (&str, &str) = ("shared_preload_libraries", "pg_stat_statements");

/// The server and its databases.
pub(crate) struct BenchEnv {
    pub(crate) settings: Settings,
    pub(crate) server: Postgres,
    dataset: Option<Database>,
    /// Whether `pg_stat_statements` is available.
    pub(crate) statements: bool,
}

impl BenchEnv {
    /// Starts a server that loses no committed transaction, as in production.
    pub(crate) async fn start(settings: Settings) -> Result<Self> {
        let options = Options::default()
            .set("fsync", "on")
            .set("full_page_writes", "on")
            .set("synchronous_commit", "on")
            .set("shared_buffers", &settings.shared_buffers)
            .set("max_wal_size", "4GB")
            // As on a server that has run for a while: segments exist, and are not created during a
            // commit.
            .set("min_wal_size", "2GB")
            .set("maintenance_work_mem", "512MB")
            .set("track_commit_timestamp", "on")
            // Complete statements, to measure those of the API.
            .set("track_activity_query_size", "16kB");
        let (server, statements) =
            match Postgres::start(options.clone().set(STATEMENTS.0, STATEMENTS.1)).await {
                Ok(server) => (server, true),
                Err(_) => (Postgres::start(options).await?, false),
            };
        Ok(Self {
            settings,
            server,
            dataset: None,
            statements,
        })
    }

    /// A database with upstream's tables, still empty.
    pub(crate) async fn empty(&self) -> Result<Database> {
        let database = Database::on(&self.server).await;
        if self.statements {
            let client = database.client().await;
            client
                .batch_execute("create extension pg_stat_statements")
                .await?;
        }
        Ok(database)
    }

    /// The database with the dataset, generated on first use.
    pub(crate) async fn dataset(&mut self) -> Result<&Database> {
        if self.dataset.is_none() {
            let database = self.empty().await?;
            dataset::generate(&database, &self.settings).await?;
            self.dataset = Some(database);
        }
        self.dataset.as_ref().context("it was just generated")
    }

    /// The database with the dataset, a running daemon and a valid column.
    pub(crate) async fn indexed_dataset(&mut self) -> Result<(&Database, Daemon)> {
        self.dataset().await?;
        let database = self.dataset.as_ref().context("it was just generated")?;
        let tune = self.settings.tune.as_deref();
        let daemon = indexed(database, LONG_CUTOFF_SECS, tune).await?;
        Ok((database, daemon))
    }
}

/// Migrates a database, runs the statements of `--tune`, starts a daemon, and waits until the
/// column is valid and the queue is empty.
pub(crate) async fn indexed(
    database: &Database,
    cutoff_secs: u32,
    tune: Option<&str>,
) -> Result<Daemon> {
    command(database, &["migrate", "up"]).await?;
    if let Some(tune) = tune {
        database.client().await.batch_execute(tune).await?;
    }
    let daemon = Launch::on(database)
        .env("RUN_INACTIVE_CUTOFF_TIME", &cutoff_secs.to_string())
        .spawn();
    ready(&daemon).await?;
    settled(&database.client().await).await?;
    Ok(daemon)
}

/// Waits until a daemon is ready, for as long as a large backfill takes.
pub(crate) async fn ready(daemon: &Daemon) -> Result<()> {
    let ready = poll(TIMEOUT, async || {
        matches!(daemon.get("/readyz").await, Some((200, _))).then_some(())
    });
    ready.await.context("the daemon does not become ready")
}

/// Waits until nothing is queued.
pub(crate) async fn settled(client: &Client) -> Result<()> {
    const EMPTY: &str = "select not exists (select from status_indexer.queue)";
    let empty = poll(TIMEOUT, async || match client.query_one(EMPTY, &[]).await {
        Ok(row) => row.get::<_, bool>(0).then_some(Ok(())),
        Err(error) => Some(Err(error)),
    });
    Ok(empty.await.context("the queue does not become empty")??)
}

/// Opens `count` separate sessions.
pub(crate) async fn clients(database: &Database, count: usize) -> Vec<Client> {
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        clients.push(connect(&database.config()).await);
    }
    clients
}

/// Runs a command of the binary on a database to its end; returns its peak memory, in MiB.
pub(crate) async fn command(database: &Database, args: &[&str]) -> Result<f64> {
    let mut child = tokio::process::Command::new(testkit::product::path())
        .args(args)
        .args(["--log", "warn"])
        .env("DATABASE_URL", database.url())
        .env("RUN_INACTIVE_CUTOFF_TIME", LONG_CUTOFF_SECS.to_string())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let pid = child.id().context("nobody has waited for it yet")?;
    let mut peak = 0.0_f64;
    loop {
        tokio::select! {
            ended = child.wait() => {
                let ended = ended?;
                ensure!(ended.success(), "`{}` ended with {ended}", args.join(" "));
                return Ok(peak);
            }
            () = sleep(Duration::from_millis(20)) => {
                peak = peak.max(memory_mib(pid, "VmHWM").unwrap_or(0.0));
            }
        }
    }
}

/// The server's counters of a statement.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) calls: f64,
    pub(crate) total_ms: f64,
    pub(crate) max_ms: f64,
}

/// Resets the counters.
pub(crate) async fn reset_costs(client: &Client) -> Result<()> {
    client
        .batch_execute("select pg_stat_statements_reset()")
        .await?;
    Ok(())
}

/// The counters of the daemon's statement of this name, without commits.
pub(crate) async fn cost(client: &Client, name: &str) -> Result<Cost> {
    const COST: &str = "\
select coalesce(sum(s.calls), 0)::float8,
       coalesce(sum(s.total_exec_time), 0)::float8,
       coalesce(max(s.max_exec_time), 0)::float8
  from pg_stat_statements s
  join pg_database d on d.oid = s.dbid and d.datname = current_database()
 where s.query like '%-- ' || $1::text || E'\\n%'";
    let row = client.query_one(COST, &[&name]).await?;
    Ok(Cost {
        calls: row.get(0),
        total_ms: row.get(1),
        max_ms: row.get(2),
    })
}
