//! The path from a write to a status, with the real binary and a real server.

use std::time::Duration;

use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::wait::eventually_eq;

/// A status follows its evidence well within this.
const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_status_follows_the_evidence_of_the_end_step() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let daemon = Launch::on(&database).start().await;
    writer.insert_flow("F").await;
    let now = writer.now_secs().await;
    let run = writer.insert_run("F", Some(now)).await;
    assert_eq!(writer.status("F", run).await, "running");
    let ms = writer.now_ms().await;
    writer.attempt("F", run, ms).await;
    writer.attempt_ok("F", run, "False", ms + 1).await;
    eventually_eq(SOON, "failed", "failed".to_owned(), async || {
        writer.status("F", run).await
    })
    .await;
    writer.attempt("F", run, ms + 2).await;
    eventually_eq(SOON, "retrying", "running".to_owned(), async || {
        writer.status("F", run).await
    })
    .await;
    writer.attempt_ok("F", run, "True", ms + 3).await;
    eventually_eq(SOON, "completed", "completed".to_owned(), async || {
        writer.status("F", run).await
    })
    .await;
    assert!(daemon.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_fails_when_its_heartbeat_stops_and_runs_again_when_it_returns() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let daemon = Launch::on(&database)
        .env("RUN_INACTIVE_CUTOFF_TIME", "2")
        .start()
        .await;
    writer.insert_flow("F").await;
    let now = writer.now_secs().await;
    let run = writer.insert_run("F", Some(now)).await;
    eventually_eq(SOON, "stale", "failed".to_owned(), async || {
        writer.status("F", run).await
    })
    .await;
    let now = writer.now_secs().await;
    assert!(writer.heartbeat("F", run, now + 10).await);
    eventually_eq(SOON, "future", "failed".to_owned(), async || {
        writer.status("F", run).await
    })
    .await;
    eventually_eq(
        Duration::from_secs(15),
        "timer",
        "running".to_owned(),
        async || writer.status("F", run).await,
    )
    .await;
    drop(daemon);
}
