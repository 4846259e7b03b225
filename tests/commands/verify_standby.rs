//! `verify` on a standby: it writes nothing, and reports as unknown what replay lag may explain.

use std::time::Duration;

use serde_json::Value;
use testkit::postgres::{Options, Postgres};

use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::standby::Standby;
use testkit::wait::eventually;
use testkit::writer::Writer;

const CUTOFF: i64 = 360;

/// The result of `verify` on the standby: its exit code, the runs that it lists, and its counts.
struct Outcome {
    code: Option<i32>,
    listed: Vec<i64>,
    counts: Value,
}

async fn verify(standby: &Standby, database: &Database) -> Outcome {
    let output = Launch::on(database)
        .args(&["verify", "--json"])
        .env("DATABASE_URL", &standby.url(database.name()))
        .output()
        .await;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().map(serde_json::from_str::<Value>);
    let mut lines: Vec<Value> = lines
        .map(|line| line.expect("one object per line"))
        .collect();
    let counts = lines.pop().unwrap_or_default();
    let numbers = lines.iter().filter_map(|line| line["run_number"].as_i64());
    Outcome {
        code: output.status.code(),
        listed: numbers.collect(),
        counts,
    }
}

async fn edit(writer: &Writer, run: i32, status: &str) {
    let edit = format!("update runs_v3 set run_status = '{status}' where run_number = {run}");
    let edited = writer.client().batch_execute(&edit).await;
    edited.expect("a valid status");
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_on_a_standby_lists_drift_and_nothing_else() {
    let primary = Postgres::start(Options::default()).await;
    let primary = primary.expect("a server of our own");
    let database = Database::on(&primary).await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let daemon = Launch::on(&database).start().await;
    let now = writer.now_secs().await;
    let done = writer.insert_run("F", Some(now)).await;
    writer.attempt_ok("F", done, "True", now * 1000).await;
    let lost = writer.insert_run("F", Some(now - 100_000)).await;
    writer.insert_run("F", Some(now)).await;
    writer.insert_run("F", None).await;
    eventually_no_drift(writer.client()).await;
    assert!(daemon.terminate().await.success());

    let Some(standby) = Standby::of(&primary).await else {
        return;
    };
    standby.catches_up(writer.client()).await;
    let outcome = verify(&standby, &database).await;
    assert_eq!(outcome.code, Some(0), "{}", outcome.counts);
    assert_eq!(outcome.counts["compared"], 4);

    // One contradicts evidence, the other a deadline that passed long before the replayed position.
    edit(&writer, done, "failed").await;
    edit(&writer, lost, "running").await;
    standby.catches_up(writer.client()).await;
    let outcome = verify(&standby, &database).await;
    assert_eq!(outcome.code, Some(1), "{}", outcome.counts);
    assert_eq!(outcome.listed, [i64::from(done), i64::from(lost)]);
    // A queued event explains a difference on a standby as well.
    let queued =
        format!("insert into status_indexer.queue (flow_id, run_number) values ('F', {done})");
    let queued = writer.client().batch_execute(&queued).await;
    queued.expect("a run's key");
    standby.catches_up(writer.client()).await;
    let outcome = verify(&standby, &database).await;
    assert_eq!(outcome.listed, [i64::from(lost)]);
    assert_eq!(outcome.counts["pending"], 1);

    assert_eq!(
        writer.status("F", done).await,
        "failed",
        "nothing is corrected"
    );
    standby.stop().await;
    primary.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_on_a_lagging_standby_reports_passed_deadlines_as_unknown() {
    /// Within this many seconds after a deadline, no server counts a difference.
    const SLACK: f64 = 5.0;
    let primary = Postgres::start(Options::default()).await;
    let primary = primary.expect("a server of our own");
    let database = Database::on(&primary).await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let daemon = Launch::on(&database).start().await;
    let Some(standby) = Standby::of(&primary).await else {
        return;
    };
    let replay = standby.client(database.name()).await;

    let now = writer.now_secs().await;
    let done = writer.insert_run("F", Some(now)).await;
    writer.attempt_ok("F", done, "True", now * 1000).await;
    let fading = writer.insert_run("F", Some(now - CUTOFF + 3)).await;
    eventually_no_drift(writer.client()).await;
    assert_eq!(writer.status("F", fading).await, "running");
    standby.catches_up(writer.client()).await;
    let paused = replay.batch_execute("select pg_wal_replay_pause()").await;
    paused.expect("tests are superuser");

    eventually_status(&writer, "F", fading, "failed").await;
    #[expect(clippy::cast_precision_loss, reason = "seconds of this century")]
    let late = (now + 3) as f64 + SLACK;
    eventually(Duration::from_secs(20), "the slack is over", async || {
        writer.now().await > late + 0.5
    })
    .await;
    let outcome = verify(&standby, &database).await;
    assert_eq!(outcome.code, Some(2), "{}", outcome.counts);
    assert_eq!(outcome.counts["unknown"], 1);
    assert_eq!(outcome.listed, [0; 0]);

    let resumed = replay.batch_execute("select pg_wal_replay_resume()").await;
    resumed.expect("tests are superuser");
    standby.catches_up(writer.client()).await;
    let outcome = verify(&standby, &database).await;
    assert_eq!(outcome.code, Some(0), "{}", outcome.counts);

    // Drift from evidence is certain, however far replay lags.
    assert!(daemon.terminate().await.success());
    edit(&writer, done, "running").await;
    standby.catches_up(writer.client()).await;
    let outcome = verify(&standby, &database).await;
    assert_eq!(outcome.code, Some(1), "{}", outcome.counts);
    assert_eq!(outcome.listed, [i64::from(done)]);
    standby.stop().await;
    primary.stop().await.expect("it stops");
}
