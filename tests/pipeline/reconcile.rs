//! The column is right whatever happened: the steady reconciler, `backfill` and `verify`.

use std::time::Duration;

use serde_json::Value;

use testkit::daemon::{Daemon, Launch};
use testkit::database::Database;
use testkit::wait::{eventually, eventually_eq};
use testkit::writer::Writer;

const SOON: Duration = Duration::from_secs(30);

/// Runs a command on the database; its exit code and what it printed.
async fn command(database: &Database, args: &[&str]) -> (Option<i32>, String) {
    let output = Launch::on(database).args(args).output().await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), text)
}

async fn vigilant(database: &Database) -> Daemon {
    Launch::on(database)
        .env("STATUS_INDEXER_RECONCILE_INTERVAL", "1")
        .start()
        .await
}

/// Runs that have all ended, one in ten of them badly, and none with a heartbeat.
async fn history(writer: &Writer, runs: i32) {
    writer.insert_flow("F").await;
    writer
        .client()
        .batch_execute(&format!(
            "insert into runs_v3 (flow_id, run_number, user_name, ts_epoch, tags, system_tags)
             select 'F', n, 'u', n, '[]', '[]' from generate_series(1, {runs}) n;
             insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value,
                                      type, user_name, ts_epoch, tags, system_tags)
             select 'F', n, 'end', 1, 'attempt_ok', case when n % 10 = 0 then 'False' else 'True' end,
                    'attempt_ok', 'u', n, '[]', '[]'
               from generate_series(1, {runs}) n
              where n % 25 <> 0;"
        ))
        .await
        .expect("plain inserts");
}

async fn wrong(writer: &Writer) -> i64 {
    writer
        .client()
        .query_one(
            "select coalesce(jsonb_array_length(drift), 0)::int8 from status_indexer.compare('', -1, 1000000)",
            &[],
        )
        .await
        .expect("the indexer is installed")
        .get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_with_triggers_off_is_found_mended_counted_and_logged() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let daemon = vigilant(&database).await;
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
        "the reconciler mends it",
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
            line["message"] == "the stored status was wrong"
                && line["run.run_number"] == run
                && line["expected"] == "completed"
                && line["attempt_ok"] == "true"
                && line["attempt_ok_ts"] == ms
        })
        .await;
    // An edit by hand is drift too.
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
async fn a_quiet_pipeline_has_no_drift() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let daemon = vigilant(&database).await;
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
    eventually(SOON, "two whole passes", async || {
        daemon.metric("status_indexer_reconciled_total").await >= Some(before + 100.0)
    })
    .await;
    for cause in ["evidence", "time"] {
        let name = format!("status_indexer_drift_total{{cause=\"{cause}\"}}");
        assert_eq!(daemon.metric(&name).await.unwrap_or(0.0), 0.0, "{cause}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backfill_makes_the_column_believable_and_counts_what_it_wrote() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    history(&writer, 1_000).await;
    assert_eq!(command(&database, &["migrate"]).await.0, Some(0));
    let (code, text) = command(&database, &["verify"]).await;
    assert_eq!(code, Some(2), "not believable yet: {text}");
    let (code, text) = command(&database, &["backfill", "--batch-size", "100"]).await;
    assert_eq!(code, Some(0), "{text}");
    // A tenth ended badly, and every twenty-fifth, of which half are tenths, left nothing.
    assert!(
        text.contains("compared 1000 runs, wrote 120 (0 running, 0 completed, 120 failed)"),
        "{text}"
    );
    assert_eq!(wrong(&writer).await, 0);
    let (code, text) = command(&database, &["verify"]).await;
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = command(&database, &["backfill"]).await;
    assert_eq!(code, Some(0));
    assert!(text.contains("nothing to do"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_leaves_the_index_on_tags_nothing_to_catch_up_with() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    history(&writer, 1_000).await;
    assert_eq!(command(&database, &["migrate"]).await.0, Some(0));
    let pending_pages = async || -> i64 {
        writer
            .client()
            .query_one(
                "select gin_clean_pending_list('runs_v3_idx_gin_tags_combined')",
                &[],
            )
            .await
            .expect("the superuser may")
            .get(0)
    };
    assert!(
        pending_pages().await > 0,
        "the insert's, so that updates leave some too"
    );
    assert_eq!(command(&database, &["backfill"]).await.0, Some(0));
    assert_eq!(wrong(&writer).await, 0);
    assert_eq!(pending_pages().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_that_is_stopped_goes_on_where_it_was_and_several_do_no_harm() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    history(&writer, 3_000).await;
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
    eventually(SOON, "it has come some way", async || {
        position().await >= Some(300)
    })
    .await;
    let ended = first.terminate().await;
    assert_eq!(ended.code(), Some(1), "stopped is not done");
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
    assert_eq!(wrong(&writer).await, 0);
}

/// A database with 2,000 runs and a backfill of it that has compared some of them, and is frozen.
async fn frozen_backfill() -> (Database, Writer, Daemon) {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    history(&writer, 2_000).await;
    assert_eq!(command(&database, &["migrate"]).await.0, Some(0));
    let frozen = Launch::on(&database)
        .args(&["backfill", "--batch-size", "100", "--max-rate", "400"])
        .spawn();
    eventually(SOON, "the pass has begun", async || {
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
async fn a_pass_that_froze_cannot_bless_a_column_made_after_it() {
    let (database, writer, frozen) = frozen_backfill().await;
    assert_eq!(command(&database, &["migrate", "down"]).await.0, Some(0));
    assert_eq!(command(&database, &["migrate", "up"]).await.0, Some(0));
    // From here on somebody believes the column if, and only if, a whole pass was made over it.
    frozen.thaw();
    let ended = frozen.exit().await;
    assert!(ended.code().is_some());
    let believable: bool = writer
        .client()
        .query_one("select status_indexer.is_valid()", &[])
        .await
        .expect("installed")
        .get(0);
    assert!(!believable || wrong(&writer).await == 0);
    assert_eq!(command(&database, &["backfill"]).await.0, Some(0));
    assert_eq!(wrong(&writer).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_froze_cannot_bless_what_no_trigger_told_behind_it() {
    let (database, writer, frozen) = frozen_backfill().await;
    writer
        .client()
        .batch_execute(
            "alter table metadata_v3 disable trigger user;
             delete from metadata_v3 where flow_id = 'F' and run_number = 1",
        )
        .await
        .expect("the owner may");
    // Whoever sees that a trigger is off says so in the state, and can do no more.
    let (code, _) = command(&database, &["backfill"]).await;
    assert_eq!(code, Some(1));
    writer
        .client()
        .batch_execute("alter table metadata_v3 enable trigger user")
        .await
        .expect("the owner may");
    frozen.thaw();
    assert_eq!(frozen.exit().await.code(), Some(0));
    assert_eq!(wrong(&writer).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_lists_what_is_wrong_and_changes_nothing() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    history(&writer, 500).await;
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
        .expect("valid");
    let (code, text) = command(&database, &["verify", "--batch-size", "100"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains(
            "F/1: stored running, should be completed (end_succeeded; attempt_ok true at 1,"
        ),
        "{text}"
    );
    assert!(
        text.contains("500 runs compared: 1 wrong, 1 in flight"),
        "{text}"
    );
    assert_eq!(writer.status("F", 1).await, "running");
    let (code, text) = command(&database, &["verify", "--flow", "G"]).await;
    assert_eq!(code, Some(0), "no run of that flow is wrong: {text}");
    let (code, text) = command(&database, &["verify", "--flow", "F", "--json"]).await;
    assert_eq!(code, Some(1));
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("one object a line"))
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["expected"], "completed");
    assert_eq!(lines[1]["drift"], 1);
    assert_eq!(lines[1]["in_flight"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_that_passed_while_no_daemon_ran_are_no_drift() {
    const CUTOFF: i64 = 360;
    /// Within the slack of a deadline nothing counts as drift anyway.
    const SLACK: f64 = 5.0;
    let database = Database::fresh().await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let daemon = vigilant(&database).await;
    let now = writer.now_secs().await;
    let mut runs = Vec::new();
    for _ in 0..200 {
        runs.push(writer.insert_run("F", Some(now - CUTOFF + 4)).await);
    }
    let queued = "select count(*) from status_indexer.queue";
    eventually_eq(SOON, "all are looked at", 0, async || {
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

    let daemon = vigilant(&database).await;
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
