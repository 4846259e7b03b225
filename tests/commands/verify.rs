//! `status-indexer verify`: its list, its counts and its exit codes.

use serde_json::Value;
use testkit::database::Database;

use super::{command, insert_history};

#[tokio::test(flavor = "multi_thread")]
async fn verify_lists_drift_and_changes_nothing() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    insert_history(&writer, 500).await;
    assert_eq!(command(&database, &["migrate"]).await.0, Some(0));
    assert_eq!(command(&database, &["backfill"]).await.0, Some(0));
    writer.insert_flow("G").await;
    writer
        .client()
        .batch_execute(
            "update runs_v3 set run_status = 'running' where run_number in (1, 2);
             insert into status_indexer.queue (flow_id, run_number) values ('F', 2);",
        )
        .await
        .expect("plain writes");
    let (code, text) = command(&database, &["verify", "--batch-size", "100"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains(
            "F/1: stored running, expected completed (end_succeeded; attempt_ok true at 1,"
        ),
        "{text}"
    );
    assert!(
        text.contains("500 runs compared: 1 with drift, 1 pending"),
        "{text}"
    );
    assert_eq!(writer.status("F", 1).await, "running");
    let (code, text) = command(&database, &["verify", "--flow", "G"]).await;
    assert_eq!(code, Some(0), "that flow has no drift: {text}");
    let (code, text) = command(&database, &["verify", "--flow", "F", "--json"]).await;
    assert_eq!(code, Some(1));
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("one object per line"))
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["expected"], "completed");
    assert_eq!(lines[1]["drift"], 1);
    assert_eq!(lines[1]["pending"], 1);
}
