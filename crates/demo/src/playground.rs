//! The environment of the demo: a private server with upstream's tables and runs in them.
//!
//! Owns the server. Promises that the printed commands work when they are copied into another
//! terminal. Called by [`crate::demo`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio_postgres::types::Type;
use tokio_postgres::{Config, NoTls};
use tokio_util::sync::CancellationToken;

use status_indexer::config::{ApiArgs, DaemonArgs, Listen};
use status_indexer::daemon::{Daemon, ListenerAccess};
use status_indexer::migrate::{self, TableNames};
use status_indexer::pg::{Connector, SessionProfile};
use status_indexer::status::RunKey;
use status_indexer::store::{Difference, explain};
use testkit::database::UPSTREAM;
use testkit::postgres::{Options, Postgres};
use testkit::product;

use crate::view::legend;
use crate::watch::Unexpected;

const HISTORY: &str = include_str!("history.sql");

const DATABASE: &str = "metaflow";

/// Short enough for several reconciliation passes in a minute.
const RECONCILE_SECS: u64 = 10;

/// The maximum number of runs that are explained at the end.
const EXPLAINED: usize = 20;

/// A run whose end step has failed, as an example for `explain`.
const EXAMPLE: &str = "\
-- demo.example
select flow_id, run_number
  from public.metadata_v3
 where step_name = 'end'
   and field_name = 'attempt_ok'
   and value = $1
 order by id desc
 limit 1";

/// See the module.
pub(crate) struct Playground {
    server: Postgres,
    /// The product's binary, for the commands.
    product: PathBuf,
    cutoff: Duration,
}

impl Playground {
    /// Starts the server and fills its database as it may be before the indexer is installed.
    pub(crate) async fn prepare(cutoff: Duration) -> Result<Self> {
        let product = product::find()?;
        let server = Postgres::start(Options::default()).await?;
        batch(&server.config("postgres"), "create database metaflow").await?;
        batch(&server.config(DATABASE), UPSTREAM).await?;
        batch(&server.config(DATABASE), HISTORY).await?;
        Ok(Self {
            server,
            product,
            cutoff,
        })
    }

    pub(crate) fn version(&self) -> &str {
        self.server.version()
    }

    /// How the clients' service connects.
    pub(crate) fn config(&self) -> Config {
        self.server.config(DATABASE)
    }

    pub(crate) fn connector(&self) -> Result<Connector> {
        Connector::to(&self.server.url(DATABASE))
    }

    fn migration(&self) -> migrate::Options {
        migrate::Options {
            names: TableNames {
                runs: "runs_v3".to_owned(),
                metadata: "metadata_v3".to_owned(),
                schema: None,
            },
            cutoff_secs: self.cutoff_secs(),
            grant_to: None,
            grant_dump_to: Vec::new(),
            allow_publications: false,
            ui: status_indexer::migrate::Ui::AsIs,
        }
    }

    /// `migrate up`.
    pub(crate) async fn install(&self) -> Result<()> {
        let never = CancellationToken::new();
        migrate::up(&self.connector()?, &self.migration(), &never).await
    }

    /// The daemon for this database; its listeners are bound already.
    pub(crate) fn daemon(
        &self,
        metrics_listen: SocketAddr,
        http_listen: SocketAddr,
    ) -> Result<Daemon> {
        Ok(Daemon {
            connector: self.connector()?,
            listen: None,
            reader: self.connector()?,
            api: ApiArgs {
                http_listen: Listen::At(http_listen),
                ..ApiArgs::defaults()
            },
            args: DaemonArgs {
                metrics_listen,
                reconcile_interval: RECONCILE_SECS,
                ..DaemonArgs::defaults()
            },
            access: ListenerAccess::default(),
            cutoff_secs: self.cutoff_secs(),
            migrate: None,
        })
    }

    /// Stops the server and removes its directory.
    pub(crate) async fn stop(self) -> Result<()> {
        self.server.stop().await
    }

    /// The addresses, and commands to try.
    pub(crate) async fn introduction(
        &self,
        http: SocketAddr,
        api: SocketAddr,
        seed: u64,
        rate: u32,
    ) -> Result<String> {
        let url = self.server.url(DATABASE);
        let example = self.example().await?;
        let psql = program("psql", self.server.programs());
        let binary = near(self.product.clone());
        let cutoff = self.cutoff.as_secs();
        let fetch = if on_path("curl").is_some() || on_path("wget").is_none() {
            "curl -s"
        } else {
            "wget -qO-"
        };
        Ok(format!(
            "
PostgreSQL   {url}
status page  http://{http}/
metrics      http://{http}/metrics
read API     http://{api}/openapi.json
traffic      {rate} new runs a second, heartbeats every second, cutoff {cutoff} s, seed {seed}

Try in another terminal:
  {psql} {url} \\
    -c 'select run_status, count(*) from runs_v3 group by 1'
  {binary} explain {flow} {run} --cutoff {cutoff} \\
    --database-url {url}
  {fetch} 'http://{api}/flows/{flow}/runs?status=failed&_limit=2'
  {fetch} http://{http}/metrics \\
    | grep -E 'transitions_total|lag_seconds_(sum|count)'

{legend}
",
            psql = quoted(&psql),
            binary = quoted(&binary),
            flow = example.flow_id,
            run = example.run_number,
            legend = legend(),
        ))
    }

    async fn example(&self) -> Result<RunKey> {
        let client = self.connector()?.connect(SessionProfile::Reader).await?;
        let row = client
            .query_typed_one(EXAMPLE, &[(&"False", Type::TEXT)])
            .await
            .context("the history has a run that failed")?;
        Ok(RunKey {
            flow_id: row.try_get(0)?,
            run_number: row.try_get(1)?,
        })
    }

    /// Explanations, as text, of the runs whose status is not the expected one.
    pub(crate) async fn explain(
        &self,
        drift: &[Difference],
        unexpected: &[Unexpected],
    ) -> Result<Vec<String>> {
        let mut keys: Vec<&RunKey> = drift.iter().map(|difference| &difference.key).collect();
        keys.extend(unexpected.iter().map(|run| &run.key));
        keys.sort();
        keys.dedup();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let client = self.connector()?.connect(SessionProfile::Reader).await?;
        let mut texts = Vec::new();
        for key in keys.into_iter().take(EXPLAINED) {
            let answer = explain(&client, &key.flow_id, &key.run_number.to_string()).await?;
            let missing = || format!("{key} does not exist");
            texts.push(answer.map_or_else(missing, |explanation| explanation.to_text()));
        }
        Ok(texts)
    }

    fn cutoff_secs(&self) -> i64 {
        i64::try_from(self.cutoff.as_secs()).unwrap_or(i64::MAX)
    }
}

async fn batch(config: &Config, sql: &str) -> Result<()> {
    let (client, connection) = config.connect(NoTls).await?;
    let connection = tokio::spawn(connection);
    client.batch_execute(sql).await?;
    drop(client);
    connection.await??;
    Ok(())
}

/// The program's name if the shell finds it, otherwise its path among the server's programs.
fn program(name: &str, programs: &Path) -> PathBuf {
    let beside = programs.join(name);
    if on_path(name).is_none() && beside.is_file() {
        return beside;
    }
    PathBuf::from(name)
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// The path, relative to the current directory if it is below.
fn near(path: PathBuf) -> PathBuf {
    let here = std::env::current_dir().ok();
    let below = here.and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned));
    below.map_or(path, |below| Path::new(".").join(below))
}

/// The path, quoted for a shell where necessary.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    if text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_are_quoted_for_the_shell() {
        assert_eq!(quoted(Path::new("./target/x-y_1.2")), "./target/x-y_1.2");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
