//! Databases with upstream's own notification triggers: the daemon logs them, and a backfill limits
//! its rate, because each status that it writes sends a message to every listening session.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use status_indexer::scan::MAX_WRITES_WITH_UPSTREAM_NOTIFY;
use tokio_postgres::{AsyncMessage, NoTls};

use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::drift::eventually_no_drift;
use testkit::wait::eventually_eq;

/// The trigger that upstream creates where `DB_TRIGGER_CREATE` is set.
const UPSTREAM_TRIGGER: &str = "\
create function notify_ui_runs_v3() returns trigger language plpgsql as $$
begin
  perform pg_notify('notify', json_build_object('table', tg_table_name, 'operation', tg_op,
                                                'run_number', new.run_number)::text);
  return new;
end
$$;
create trigger notify_ui_runs_v3
  after insert or update on runs_v3
  for each row execute function notify_ui_runs_v3();";

/// Runs whose status the backfill writes: without evidence and heartbeat they have failed.
const RUNS: i32 = 500;

/// A database before the indexer is installed.
async fn database() -> Database {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let runs = format!(
        "insert into runs_v3 (flow_id, run_number, ts_epoch)
         select 'F', n, n from generate_series(1, {RUNS}) n"
    );
    let written = writer.client().batch_execute(&runs).await;
    written.expect("runs can be written");
    let created = writer.client().batch_execute(UPSTREAM_TRIGGER).await;
    created.expect("an empty schema");
    database
}

fn mentions_triggers(line: &serde_json::Value) -> bool {
    line["message"].to_string().contains("notify_ui trigger")
}

/// The seconds that a daemon's backfill takes, and whether the log mentions the triggers.
async fn backfill(database: &Database) -> (f64, bool) {
    let daemon = Launch::on(database).start().await;
    let line = daemon
        .logged("the end of the backfill", |line| {
            line["message"].to_string().contains("backfill complete")
        })
        .await;
    assert_eq!(line["corrected"], RUNS);
    eventually_no_drift(&database.client().await).await;
    let mentioned = daemon.log().iter().any(mentions_triggers);
    assert!(daemon.terminate().await.success());
    let secs = line["elapsed_secs"].as_f64();
    (secs.expect("seconds are logged"), mentioned)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemons_backfill_keeps_to_a_rate_where_upstream_triggers_notify() {
    let database = database().await;
    let (client, mut connection) = database
        .config()
        .connect(NoTls)
        .await
        .expect("the test's server accepts connections");
    let (received, mut messages) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut traffic = stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = traffic.next().await {
            if let AsyncMessage::Notification(_) = message {
                let _ = received.send(());
            }
        }
    });
    let listening = client.batch_execute("listen notify").await;
    listening.expect("the session can listen");

    let (secs, mentioned) = backfill(&database).await;
    assert!(mentioned, "the log says why it is slow");
    let least = f64::from(RUNS) / MAX_WRITES_WITH_UPSTREAM_NOTIFY;
    assert!(secs >= least, "{RUNS} statuses in {secs} s");
    eventually_eq(
        Duration::from_secs(10),
        "one message per status",
        RUNS,
        async || i32::try_from(messages.len()).expect("they are counted"),
    )
    .await;
    messages.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemons_backfill_runs_at_full_speed_where_upstream_triggers_are_disabled() {
    let database = database().await;
    let off = "alter table runs_v3 disable trigger notify_ui_runs_v3";
    let switched = database.client().await.batch_execute(off).await;
    switched.expect("it is installed");
    let (secs, mentioned) = backfill(&database).await;
    assert!(!mentioned);
    let least = f64::from(RUNS) / MAX_WRITES_WITH_UPSTREAM_NOTIFY;
    assert!(secs < least, "{RUNS} statuses in {secs} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_backfill_logs_upstream_triggers_and_keeps_to_the_rate() {
    let database = database().await;
    for words in [&["migrate", "up"][..], &["backfill"]] {
        let start = std::time::Instant::now();
        let output = Launch::on(&database).args(words).output().await;
        assert!(output.status.success(), "{words:?}: {output:?}");
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(log.contains("notify_ui trigger"), "{words:?}: {log}");
        if words == ["backfill"] {
            let least = f64::from(RUNS) / MAX_WRITES_WITH_UPSTREAM_NOTIFY;
            let secs = start.elapsed().as_secs_f64();
            assert!(secs >= least, "{RUNS} statuses in {secs} s");
        }
    }
    eventually_no_drift(&database.client().await).await;
}
