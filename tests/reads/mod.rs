//! Exact reads: in its snapshot, every reader sees the statuses that the definition gives.
//!
//! | File | What it proves |
//! |---|---|
//! | [`bounds`] | what readers rely on without looking is never too late, whatever is interleaved |
//! | [`plans`] | a page of the view reads ranges of the indexes, however its condition is written |
//! | [`storm`] | the view and its pages, while writers write and daemons die |
//!
//! `tests/api/exact.rs` has the tests of the read API.
//!
//! Each kind of test is also run against a product with a mutation, which it must find.

mod bounds;
mod mutation;
mod plans;
mod storm;

use tokio_postgres::Client;

use testkit::daemon::Launch;
use testkit::database::Database;

/// Installs the indexer with this cutoff (seconds), without a daemon.
async fn migrate(database: &Database, cutoff_secs: i64) {
    let launch = Launch::on(database).args(&["migrate", "up"]);
    launch
        .env("RUN_INACTIVE_CUTOFF_TIME", &cutoff_secs.to_string())
        .succeed()
        .await;
}

/// Executes statements without parameters or rows.
async fn run(client: &Client, statements: &str) {
    client
        .batch_execute(statements)
        .await
        .unwrap_or_else(|error| panic!("{statements}: {error:?}"));
}
