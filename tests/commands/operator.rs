//! Situations of operation: empty variables, closed pipes, removal under a running daemon, grants.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use testkit::daemon::Launch;
use testkit::database::{Database, connect};
use testkit::wait::eventually;

const TIMEOUT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn empty_variables_of_a_chart_count_as_unset() {
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
    assert!(
        log.contains("step applied"),
        "the default level applies: {log}"
    );
}

#[tokio::test]
async fn a_closed_standard_output_is_not_a_failure() {
    let database = Database::fresh().await;
    let commands = [&["migrate", "status"][..], &["verify"], &["backfill"]];
    let launch = Launch::on(&database).args(&["migrate", "up"]);
    assert!(launch.output().await.status.success());
    for command in commands {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = Command::new(testkit::product::path())
            .args(command)
            .env_remove("MF_METADATA_DB_DSN")
            .env("DATABASE_URL", database.url())
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .await
            .expect("the binary was built with the tests");
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {log}");
    }
}

#[tokio::test]
async fn down_logs_only_its_own_lines_also_where_nothing_is_installed() {
    let database = Database::fresh().await;
    for _ in 0..2 {
        let output = Launch::on(&database)
            .args(&["migrate", "down"])
            .output()
            .await;
        assert!(output.status.success());
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            let line: Value = serde_json::from_str(line).expect("the log is JSON");
            let target = line["target"].as_str().expect("a line has a target");
            assert!(target.starts_with("status_indexer"), "{line}");
        }
    }
}

#[tokio::test]
async fn a_daemon_whose_objects_were_dropped_is_not_ready() {
    let database = Database::fresh().await;
    let daemon = Launch::on(&database).start().await;
    let output = Launch::on(&database)
        .args(&["migrate", "down"])
        .output()
        .await;
    assert!(output.status.success());
    eventually(TIMEOUT, "it is not ready any more", async || {
        matches!(daemon.get("/readyz").await, Some((503, _)))
    })
    .await;
    assert_eq!(daemon.metric("status_indexer_valid").await, Some(0.0));
}

#[tokio::test]
async fn a_reader_of_the_view_needs_the_runs_table_and_no_other_grant() {
    let database = Database::fresh().await;
    let _daemon = Launch::on(&database).start().await;
    let writer = database.writer().await;
    writer.insert_flow("Flow").await;
    let now = writer.now_secs().await;
    writer.insert_run("Flow", Some(now)).await;
    let grants = "\
create role reader_of_the_view login;
grant usage on schema status_indexer to reader_of_the_view;
grant select on status_indexer.runs to reader_of_the_view;
grant select on runs_v3 to reader_of_the_view";
    writer
        .client()
        .batch_execute(grants)
        .await
        .expect("the superuser grants");
    let reader = connect(database.config().user("reader_of_the_view")).await;
    let row = reader
        .query_one("select status from status_indexer.runs", &[])
        .await
        .expect("these grants are enough");
    assert_eq!(row.get::<_, Option<&str>>(0), Some("running"));
}
