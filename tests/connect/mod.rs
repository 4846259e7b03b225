//! Connections are made as by libpq, also while servers fail.
//!
//! Owns two promises: a connection string means what it means to `psql`, and a server, name or
//! secret that is missing for a while neither ends the daemon nor makes it connect to the wrong
//! server.

mod failover;
mod hosts;
mod psql;
pub(crate) mod secrets;
pub(crate) mod server;
mod waiting;

use std::time::Duration;

use testkit::daemon::Daemon;
use testkit::database::Database;
use testkit::writer::Writer;

/// How long a condition may take that depends on several limits of a connection.
const TIMEOUT: Duration = Duration::from_secs(120);

async fn leads(daemon: &Daemon) -> bool {
    daemon.metric("status_indexer_leader").await == Some(1.0)
}

/// Waits for a line of the log that contains the text.
async fn logged(daemon: &Daemon, text: &str) {
    daemon
        .logged(text, |line| line.to_string().contains(text))
        .await;
}

/// A run without evidence, and who writes its evidence.
async fn set_up_run(database: &Database) -> (Writer, i32) {
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let run = writer.insert_run("F", None).await;
    (writer, run)
}
