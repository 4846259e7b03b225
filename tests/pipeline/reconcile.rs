//! The reconciler of a running daemon: it corrects what no event reported, and finds nothing else.

use std::time::Duration;

use testkit::daemon::{Daemon, Launch};
use testkit::database::Database;
use testkit::wait::{eventually, eventually_eq};

const SOON: Duration = Duration::from_secs(30);

/// A daemon that reconciles as often as it can.
async fn reconciling(database: &Database) -> Daemon {
    Launch::on(database)
        .env("STATUS_INDEXER_RECONCILE_INTERVAL", "1")
        .start()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_found_corrected_counted_and_logged() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let daemon = reconciling(&database).await;
    let run = writer.insert_run("F", Some(writer.now_secs().await)).await;
    writer
        .client()
        .batch_execute("set session_replication_role = replica")
        .await
        .expect("tests are superuser");
    let ms = writer.now_ms().await;
    writer.attempt_ok("F", run, "True", ms).await;
    assert_eq!(writer.status("F", run).await, "running");
    eventually_eq(
        SOON,
        "the reconciler corrects it",
        "completed".to_owned(),
        async || writer.status("F", run).await,
    )
    .await;
    eventually_eq(SOON, "and counts it", Some(1.0), async || {
        daemon
            .metric("status_indexer_drift_total{cause=\"evidence\"}")
            .await
    })
    .await;
    daemon
        .logged("with its evidence", |line| {
            line["message"] == "the stored status had drifted; corrected"
                && line["run.run_number"] == run
                && line["expected"] == "completed"
                && line["attempt_ok"] == "true"
                && line["attempt_ok_ts"] == ms
        })
        .await;
    // An edit by hand is drift as well.
    writer
        .client()
        .batch_execute("update runs_v3 set run_status = 'failed'")
        .await
        .expect("a valid status");
    eventually_eq(
        SOON,
        "an edit by hand is undone",
        "completed".to_owned(),
        async || writer.status("F", run).await,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_pipeline_has_no_drift() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let daemon = reconciling(&database).await;
    for n in 0..50 {
        let now = writer.now_secs().await;
        let run = writer.insert_run("F", Some(now)).await;
        let ms = writer.now_ms().await;
        writer.attempt("F", run, ms).await;
        writer
            .attempt_ok("F", run, if n % 2 == 0 { "True" } else { "no" }, ms)
            .await;
    }
    let before = daemon
        .metric("status_indexer_reconciled_total")
        .await
        .unwrap_or(0.0);
    eventually(SOON, "two complete passes", async || {
        daemon.metric("status_indexer_reconciled_total").await >= Some(before + 100.0)
    })
    .await;
    for cause in ["evidence", "time"] {
        let name = format!("status_indexer_drift_total{{cause=\"{cause}\"}}");
        assert_eq!(daemon.metric(&name).await.unwrap_or(0.0), 0.0, "{cause}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_that_passed_while_no_daemon_ran_are_not_drift() {
    const CUTOFF: i64 = 360;
    /// Within this many seconds after a deadline, a difference does not count as drift.
    const SLACK: f64 = 5.0;
    let database = Database::fresh().await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let daemon = reconciling(&database).await;
    let now = writer.now_secs().await;
    let mut runs = Vec::new();
    for _ in 0..200 {
        runs.push(writer.insert_run("F", Some(now - CUTOFF + 4)).await);
    }
    let queued = "select count(*) from status_indexer.queue";
    eventually_eq(SOON, "all events are applied", 0, async || {
        let row = writer.client().query_one(queued, &[]).await;
        row.expect("the queue is there").get::<_, i64>(0)
    })
    .await;
    assert!(daemon.terminate().await.success());
    #[expect(clippy::cast_precision_loss, reason = "seconds of this century")]
    let late = (now + 4) as f64 + SLACK + 1.0;
    eventually(SOON, "the slack is over", async || {
        writer.now().await > late
    })
    .await;

    let daemon = reconciling(&database).await;
    for run in runs {
        eventually_eq(
            SOON,
            "the sweeper finds it",
            "failed".to_owned(),
            async || writer.status("F", run).await,
        )
        .await;
    }
    let drift = daemon
        .metric("status_indexer_drift_total{cause=\"time\"}")
        .await;
    assert_eq!(drift.unwrap_or(0.0), 0.0);
}
