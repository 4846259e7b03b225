//! Faults that occur in production, injected into a real server and the real binary.
//!
//! Owns one promise in many forms: no event is lost, no status is stale after the fault has ended,
//! and no writer of evidence is affected. One file per kind of fault.

mod clients;
pub(crate) mod clock;
mod connections;
mod crash;
mod disk_full;
mod encoding;
mod gauges;
mod horizon;
mod leaders;
mod listen_url;
mod locks;
mod polling;
mod pooler;
mod races;
mod rows;
mod settings;
mod silence;
mod soak;
mod startup;
mod supervision;
mod triggers;
mod versions;
mod visibility;

use std::process::Output;

use serde_json::Value;
use tokio_postgres::Client;

use testkit::daemon::{Daemon, Launch};
use testkit::database::Database;

/// Installs the indexer's objects, without a daemon.
async fn migrate(database: &Database) {
    command(database, "migrate").await;
}

/// Runs a command of one or more words, which must succeed.
async fn command(database: &Database, words: &str) {
    let words: Vec<&str> = words.split(' ').collect();
    Launch::on(database).args(&words).succeed().await;
}

fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A daemon whose sessions have this application name.
fn named(database: &Database, name: &str) -> Launch {
    let url = format!("{}?application_name={name}", database.url());
    Launch::on(database).env("DATABASE_URL", &url)
}

/// Whether the daemon leads.
async fn leads(daemon: &Daemon) -> bool {
    daemon.metric("status_indexer_leader").await == Some(1.0)
}

/// Whether a drain of this daemon (its sessions' name) has claimed events and waits for a lock.
async fn drain_is_stuck(client: &Client, name: &str) -> bool {
    const STUCK: &str = "\
select exists (select
                 from pg_stat_activity
                where datname = current_database()
                  and application_name = $1
                  and wait_event_type = 'Lock'
                  and query like '-- queue.drain%')";
    client
        .query_one(STUCK, &[&name])
        .await
        .expect("activity can be read")
        .get(0)
}

/// How many sessions of this name there are.
async fn sessions(client: &Client, name: &str) -> i64 {
    const COUNT: &str = "\
select count(*)
  from pg_stat_activity
 where datname = current_database()
   and application_name = $1";
    client
        .query_one(COUNT, &[&name])
        .await
        .expect("activity can be read")
        .get(0)
}

/// Empties the queue as a worker does, from a session of the test.
async fn drain(client: &Client) -> i32 {
    const DRAIN: &str = "select claimed from status_indexer.drain(0, 1000, null)";
    client
        .query_one(DRAIN, &[])
        .await
        .expect("the queue can be drained")
        .get(0)
}

/// Evaluates one run, from a session of the test; returns what was changed and skipped.
async fn apply(client: &Client, flow: &str, run: i32) -> (Option<Value>, Option<Value>) {
    const APPLY: &str = "\
select changes, skipped
  from status_indexer.apply(array[$1::text], array[$2::int8], null)";
    let row = client
        .query_one(APPLY, &[&flow, &i64::from(run)])
        .await
        .expect("a run can be evaluated");
    (row.get(0), row.get(1))
}

/// How many events are in the queue.
async fn queued(client: &Client) -> i64 {
    client
        .query_one("select count(*) from status_indexer.queue", &[])
        .await
        .expect("the queue exists")
        .get(0)
}

/// Executes statements without parameters or rows.
async fn run(client: &Client, statements: &str) {
    client
        .batch_execute(statements)
        .await
        .unwrap_or_else(|error| panic!("{statements}: {error:?}"));
}
