//! The site that the demo plays on: a private server with upstream's tables and runs in them.
//!
//! Owns the server. Promises commands that work when they are copied into another terminal.
//! Called by the demo alone.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio_postgres::types::Type;
use tokio_postgres::{Config, NoTls};
use tokio_util::sync::CancellationToken;

use super::postgres::{Options, Postgres};
use super::view::legend;
use crate::config::{ApiArgs, DaemonArgs};
use crate::daemon::Daemon;
use crate::explain::explain;
use crate::migrate::{self, TableNames};
use crate::pg::{Connector, Purpose, TlsParams};
use crate::status::{RunKey, Status};
use crate::store::runs::Difference;

const UPSTREAM: &str = include_str!("upstream.sql");
const HISTORY: &str = include_str!("history.sql");

const DATABASE: &str = "metaflow";

/// One looks on for a minute or so: a pass over all runs comes round a few times in it.
const RECONCILE_SECS: u64 = 10;

/// At most so many runs are explained at the end.
const EXPLAINED: usize = 20;

/// A run that has something to explain: its end step has failed.
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
pub(super) struct Site {
    server: Postgres,
    cutoff: Duration,
}

impl Site {
    /// Starts the server and fills its database as it is before the indexer comes.
    pub(super) async fn prepare(cutoff: Duration) -> Result<Self> {
        let server = Postgres::start(Options::default()).await?;
        batch(&server.config("postgres"), "create database metaflow").await?;
        batch(&server.config(DATABASE), UPSTREAM).await?;
        batch(&server.config(DATABASE), HISTORY).await?;
        Ok(Self { server, cutoff })
    }

    pub(super) fn version(&self) -> &str {
        self.server.version()
    }

    /// How the clients' service connects.
    pub(super) fn config(&self) -> Config {
        self.server.config(DATABASE)
    }

    pub(super) fn connector(&self) -> Result<Connector> {
        Ok(Connector::new(self.config(), &TlsParams::default())?)
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
        }
    }

    /// `migrate up`.
    pub(super) async fn install(&self) -> Result<()> {
        let never = CancellationToken::new();
        migrate::up(&self.connector()?, &self.migration(), &never).await
    }

    /// The daemon for this database, to be run on listeners that are bound already.
    pub(super) fn daemon(
        &self,
        metrics_listen: SocketAddr,
        http_listen: SocketAddr,
    ) -> Result<Daemon> {
        Ok(Daemon {
            connector: self.connector()?,
            reader: self.connector()?,
            api: ApiArgs {
                http_listen,
                ..ApiArgs::defaults()
            },
            args: DaemonArgs {
                metrics_listen,
                reconcile_interval: RECONCILE_SECS,
                ..DaemonArgs::defaults()
            },
            cutoff_secs: self.cutoff_secs(),
            migrate: None,
        })
    }

    /// Stops the server and removes its directory.
    pub(super) async fn leave(self) -> Result<()> {
        self.server.stop().await
    }

    /// What there is to look at, and what to try.
    pub(super) async fn introduction(
        &self,
        http: SocketAddr,
        api: SocketAddr,
        seed: u64,
        rate: u32,
    ) -> Result<String> {
        let url = self.server.url(DATABASE);
        let example = self.example().await?;
        let psql = program("psql", self.server.programs());
        let own = std::env::current_exe().map_or_else(|_| "status-indexer".into(), near);
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
  {own} explain {flow} {run} --cutoff {cutoff} \\
    --database-url {url}
  {fetch} 'http://{api}/flows/{flow}/runs?status=failed&_limit=2'
  {fetch} http://{http}/metrics \\
    | grep -E 'transitions_total|lag_seconds_(sum|count)'

{legend}
",
            psql = quoted(&psql),
            own = quoted(&own),
            flow = example.flow_id,
            run = example.run_number,
            legend = legend(),
        ))
    }

    async fn example(&self) -> Result<RunKey> {
        let client = self.connector()?.connect(Purpose::Read).await?;
        let row = client
            .query_typed_one(EXAMPLE, &[(&"False", Type::TEXT)])
            .await
            .context("the history has a run that failed")?;
        Ok(RunKey {
            flow_id: row.try_get(0)?,
            run_number: row.try_get(1)?,
        })
    }

    /// Why the runs that are not as they should be are what they are, for people.
    pub(super) async fn explain(
        &self,
        wrong: &[Difference],
        unexpected: &[(RunKey, String, Status)],
    ) -> Result<Vec<String>> {
        let mut keys: Vec<&RunKey> = wrong.iter().map(|difference| &difference.key).collect();
        keys.extend(unexpected.iter().map(|(key, _, _)| key));
        keys.sort();
        keys.dedup();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let client = self.connector()?.connect(Purpose::Read).await?;
        let mut texts = Vec::new();
        for key in keys.into_iter().take(EXPLAINED) {
            let answer = explain(&client, &key.flow_id, &key.run_number.to_string()).await?;
            let gone = || format!("{key} is gone");
            texts.push(answer.map_or_else(gone, |explanation| explanation.to_text()));
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

/// The program by its name where the shell finds it, else beside the server's own.
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

/// The path as it is typed from here.
fn near(path: PathBuf) -> PathBuf {
    let here = std::env::current_dir().ok();
    let below = here.and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned));
    below.map_or(path, |below| Path::new(".").join(below))
}

/// The path as a shell takes it.
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
