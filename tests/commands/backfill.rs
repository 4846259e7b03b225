//! `status-indexer backfill`: it completes, resumes, shares the work, and marks the column valid
//! only where it may.

use std::time::Duration;

use testkit::daemon::{Daemon, Launch};
use testkit::database::Database;
use testkit::wait::eventually;
use testkit::writer::Writer;

use super::{command, drift, insert_history};

const SOON: Duration = Duration::from_secs(30);

/// A database with 2,000 runs, and a frozen backfill that has compared some of them.
async fn frozen_backfill() -> (Database, Writer, Daemon) {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    insert_history(&writer, 2_000).await;
    assert_eq!(command(&database, &["migrate"]).await.0, Some(0));
    let frozen = Launch::on(&database)
        .args(&["backfill", "--batch-size", "100", "--max-rate", "400"])
        .spawn();
    eventually(SOON, "the backfill has begun", async || {
        let row = writer
            .client()
            .query_one("select scan_compared > 0 from status_indexer.state", &[])
            .await
            .expect("one row");
        row.get::<_, bool>(0)
    })
    .await;
    frozen.freeze().await;
    (database, writer, frozen)
}

#[tokio::test(flavor = "multi_thread")]
async fn backfill_makes_the_column_valid_and_counts_the_statuses_it_wrote() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    insert_history(&writer, 1_000).await;
    assert_eq!(command(&database, &["migrate"]).await.0, Some(0));
    let (code, text) = command(&database, &["verify"]).await;
    assert_eq!(code, Some(2), "not valid yet: {text}");
    let (code, text) = command(&database, &["backfill", "--batch-size", "100"]).await;
    assert_eq!(code, Some(0), "{text}");
    // One in ten failed; one in 25 has no evidence, and half of these are among the tenths.
    assert!(
        text.contains("compared 1000 runs, wrote 120 (0 running, 0 completed, 120 failed)"),
        "{text}"
    );
    assert_eq!(drift(&writer).await, 0);
    let (code, text) = command(&database, &["verify"]).await;
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = command(&database, &["backfill"]).await;
    assert_eq!(code, Some(0));
    assert!(text.contains("nothing to do"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_flushes_the_pending_list_of_the_index_on_tags() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    insert_history(&writer, 1_000).await;
    assert_eq!(command(&database, &["migrate"]).await.0, Some(0));
    let pending_pages = async || -> i64 {
        writer
            .client()
            .query_one(
                "select gin_clean_pending_list('runs_v3_idx_gin_tags_combined')",
                &[],
            )
            .await
            .expect("tests are superuser")
            .get(0)
    };
    assert!(
        pending_pages().await > 0,
        "the inserts left entries, so updates do as well"
    );
    assert_eq!(command(&database, &["backfill"]).await.0, Some(0));
    assert_eq!(drift(&writer).await, 0);
    assert_eq!(pending_pages().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_backfill_resumes_and_several_can_run_at_once() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    insert_history(&writer, 3_000).await;
    assert_eq!(command(&database, &["migrate"]).await.0, Some(0));
    let slow = ["backfill", "--batch-size", "100", "--max-rate", "500"];
    let first = Launch::on(&database).args(&slow).spawn();
    let position = async || -> Option<i64> {
        writer
            .client()
            .query_one("select scan_run_number from status_indexer.state", &[])
            .await
            .expect("one row")
            .get(0)
    };
    eventually(SOON, "it has compared some runs", async || {
        position().await >= Some(300)
    })
    .await;
    let ended = first.terminate().await;
    assert_eq!(ended.code(), Some(1), "it was stopped before the end");
    let stopped_at = position().await;
    assert!(stopped_at < Some(3_000));
    let (one, two) = tokio::join!(
        command(
            &database,
            &["backfill", "--batch-size", "100", "--concurrency", "2"]
        ),
        command(
            &database,
            &["backfill", "--batch-size", "150", "--concurrency", "4"]
        ),
    );
    assert_eq!((one.0, two.0), (Some(0), Some(0)), "{one:?} {two:?}");
    assert_eq!(drift(&writer).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_backfill_cannot_mark_a_column_valid_that_was_created_after_it() {
    let (database, writer, frozen) = frozen_backfill().await;
    assert_eq!(command(&database, &["migrate", "down"]).await.0, Some(0));
    assert_eq!(command(&database, &["migrate", "up"]).await.0, Some(0));
    // From here on the column may become valid only after a complete scan.
    frozen.thaw();
    let ended = frozen.exit().await;
    assert!(ended.code().is_some());
    let valid: bool = writer
        .client()
        .query_one("select status_indexer.is_valid()", &[])
        .await
        .expect("the schema is installed")
        .get(0);
    assert!(!valid || drift(&writer).await == 0);
    assert_eq!(command(&database, &["backfill"]).await.0, Some(0));
    assert_eq!(drift(&writer).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_backfill_cannot_mark_the_column_valid_after_a_trigger_gap() {
    let (database, writer, frozen) = frozen_backfill().await;
    writer
        .client()
        .batch_execute(
            "alter table metadata_v3 disable trigger user;
             delete from metadata_v3 where flow_id = 'F' and run_number = 1",
        )
        .await
        .expect("tests are superuser");
    // A backfill that sees the disabled trigger records that, and cannot complete.
    let (code, _) = command(&database, &["backfill"]).await;
    assert_eq!(code, Some(1));
    writer
        .client()
        .batch_execute("alter table metadata_v3 enable trigger user")
        .await
        .expect("tests are superuser");
    frozen.thaw();
    assert_eq!(frozen.exit().await.code(), Some(0));
    assert_eq!(drift(&writer).await, 0);
}
