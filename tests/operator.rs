//! What an operator meets at a shell: variables of charts, pipes, and the wrong order of things.

use std::process::Stdio;

use tokio::process::Command;

use crate::support::daemon::Launch;
use crate::support::database::Database;

#[tokio::test]
async fn a_variable_that_is_empty_counts_as_unset() {
    let database = Database::fresh().await;
    let mut launch = Launch::on(&database).args(&["migrate", "up"]);
    for name in [
        "RUN_INACTIVE_CUTOFF_TIME",
        "DB_TABLE_NAME_RUNS",
        "DB_TABLE_NAME_METADATA",
        "DB_SCHEMA_NAME",
        "MF_METADATA_DB_PORT",
        "MF_METADATA_DB_DSN",
        "STATUS_INDEXER_GRANT_TO",
        "STATUS_INDEXER_LOG",
        "STATUS_INDEXER_LOG_FORMAT",
    ] {
        launch = launch.env(name, "");
    }
    let output = launch.output().await;
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(log.contains("migrated"), "the default level applies: {log}");
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_failure() {
    let database = Database::fresh().await;
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_status-indexer"))
        .args(["migrate", "status"])
        .env_remove("MF_METADATA_DB_DSN")
        .env("DATABASE_URL", database.url())
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .await
        .expect("the binary was built with the tests");
    // Nothing is installed, which is what it would have said.
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
