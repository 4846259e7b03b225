//! Obstacles that keep the daemon from seeing every row and every event: it reports them, and the
//! column is not valid until all runs have been compared again.

use std::time::Duration;

use serde_json::Value;
use testkit::daemon::{Daemon, Launch};
use testkit::database::Database;
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::wait::{eventually, eventually_eq};
use testkit::writer::Writer;

use super::command;

const TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until `/readyz` answers 503 with this text among the reasons.
async fn unready(daemon: &Daemon, text: &str) {
    eventually(TIMEOUT, &format!("not ready: {text}"), async || {
        let Some((503, body)) = daemon.get("/readyz").await else {
            return false;
        };
        let answer: Value = serde_json::from_str(&body).expect("the answer is JSON");
        answer["missing"].to_string().contains(text)
    })
    .await;
}

async fn is_valid(writer: &Writer) -> bool {
    writer
        .client()
        .query_one(
            "select valid_since is not null from status_indexer.state",
            &[],
        )
        .await
        .expect("the state can be read")
        .get(0)
}

async fn condition(daemon: &Daemon, name: &str) -> Option<f64> {
    daemon
        .metric(&format!("status_indexer_unhealthy{{condition=\"{name}\"}}"))
        .await
}

/// Twenty completed runs of a flow.
async fn completed_runs(writer: &Writer) {
    writer
        .client()
        .batch_execute(
            "insert into flows_v3 (flow_id, ts_epoch) values ('F', 0);
             insert into runs_v3 (flow_id, run_number, ts_epoch, tags, system_tags)
             select 'F', n, n, '[]', '[]' from generate_series(1, 20) n;
             insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type,
                                      ts_epoch, tags, system_tags)
             select 'F', n, 'end', 1, 'attempt_ok', 'True', 't', n, '[]', '[]' from generate_series(1, 20) n",
        )
        .await
        .expect("rows can be written");
}

async fn completed(writer: &Writer) -> i64 {
    writer
        .client()
        .query_one(
            "select count(*) from runs_v3 where run_status = 'completed'",
            &[],
        )
        .await
        .expect("the column exists")
        .get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn row_level_security_is_refused_and_changes_no_status() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    completed_runs(&writer).await;
    let role = format!("indexer_{}", database.name());
    writer
        .client()
        .batch_execute(&format!("create role {role} login"))
        .await
        .expect("a role can be created");
    command(&database, &format!("migrate up --grant-to {role}")).await;
    let url = database.url().replace("postgres@", &format!("{role}@"));
    let daemon = Launch::on(&database)
        .args(&["run", "--metrics-listen", "127.0.0.1:0"])
        .env("DATABASE_URL", &url)
        .env("STATUS_INDEXER_RECONCILE_RATE", "100000")
        .env("STATUS_INDEXER_RECONCILE_INTERVAL", "1")
        .start()
        .await;
    assert_eq!(completed(&writer).await, 20);

    for table in ["metadata_v3", "runs_v3"] {
        let alter = format!("alter table {table} enable row level security");
        writer.client().batch_execute(&alter).await.expect("it can");
        unready(&daemon, "row level security").await;
        eventually_eq(TIMEOUT, "durably invalid", false, async || {
            is_valid(&writer).await
        })
        .await;
        assert_eq!(condition(&daemon, "rows_hidden").await, Some(1.0));
        assert_eq!(completed(&writer).await, 20, "no status was written");
        let verify = Launch::on(&database)
            .args(&["verify"])
            .env("DATABASE_URL", &url)
            .output()
            .await;
        assert_eq!(verify.status.code(), Some(2));
        let text = String::from_utf8_lossy(&verify.stderr);
        assert!(text.contains("row level security"), "{text}");
        let alter = format!("alter table {table} disable row level security");
        writer.client().batch_execute(&alter).await.expect("it can");
        daemon.ready().await;
        assert_eq!(condition(&daemon, "rows_hidden").await, Some(0.0));
    }
    assert_eq!(completed(&writer).await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_is_missing_while_the_daemon_runs_invalidates_the_column_until_it_is_back() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let daemon = Launch::on(&database).start().await;
    writer.insert_flow("F").await;
    let lost = writer.insert_run("F", None).await;
    eventually_status(&writer, "F", lost, "failed").await;
    for (damage, repair) in [
        (
            "alter table metadata_v3 disable trigger status_indexer_insert",
            "alter table metadata_v3 enable trigger status_indexer_insert",
        ),
        ("drop trigger status_indexer_insert on metadata_v3", ""),
    ] {
        writer.client().batch_execute(damage).await.expect("it can");
        writer
            .attempt_ok("F", lost, "True", writer.now_ms().await)
            .await;
        unready(&daemon, "trigger status_indexer_insert on").await;
        eventually_eq(TIMEOUT, "durably invalid", false, async || {
            is_valid(&writer).await
        })
        .await;
        assert_eq!(condition(&daemon, "triggers_missing").await, Some(1.0));
        if repair.is_empty() {
            command(&database, "migrate up").await;
        } else {
            writer.client().batch_execute(repair).await.expect("it can");
        }
        // The backfill finds what no trigger reported.
        daemon.ready().await;
        assert_eq!(writer.status("F", lost).await, "completed");
        writer
            .client()
            .batch_execute("delete from metadata_v3")
            .await
            .expect("rows can be deleted");
        eventually_status(&writer, "F", lost, "failed").await;
    }
    let lines = daemon.log();
    let begun = lines
        .iter()
        .filter(|line| line["message"] == "unhealthy" && line["condition"] == "triggers_missing");
    assert_eq!(
        begun.count(),
        2,
        "one line for each change of the condition"
    );
    eventually_no_drift(writer.client()).await;
}
