//! At sites with upstream's own notifying triggers: a pass over all runs says so, and keeps to a
//! rate, because each status that it writes is a message to everybody who listens.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use status_indexer::scan::MAX_WRITES_WITH_UPSTREAM_NOTIFY;
use tokio_postgres::{AsyncMessage, NoTls};

use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::drift::eventually_no_drift;
use testkit::wait::eventually_eq;

/// As upstream makes them where `DB_TRIGGER_CREATE` is set.
const NEIGHBOUR: &str = "\
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

/// Runs whose status the first pass writes: without evidence or heartbeat they have failed.
const RUNS: i32 = 500;

/// A database from before the indexer.
async fn site() -> Database {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let runs = format!(
        "insert into runs_v3 (flow_id, run_number, ts_epoch)
         select 'F', n, n from generate_series(1, {RUNS}) n"
    );
    let written = writer.client().batch_execute(&runs).await;
    written.expect("runs can be written");
    let neighbour = writer.client().batch_execute(NEIGHBOUR).await;
    neighbour.expect("an empty schema");
    database
}

fn speaks_of_it(line: &serde_json::Value) -> bool {
    line["message"].to_string().contains("notify_ui trigger")
}

/// The seconds that the first pass of a daemon takes, and whether it spoke of the triggers.
async fn first_pass(database: &Database) -> (f64, bool) {
    let daemon = Launch::on(database).start().await;
    let line = daemon
        .logged("the first pass", |line| {
            line["message"].to_string().contains("first pass complete")
        })
        .await;
    assert_eq!(line["corrected"], RUNS);
    eventually_no_drift(&database.client().await).await;
    let spoke = daemon.log().iter().any(speaks_of_it);
    assert!(daemon.terminate().await.success());
    let secs = line["elapsed_secs"].as_f64();
    (secs.expect("seconds are logged"), spoke)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_pass_keeps_to_a_rate_where_each_status_written_is_a_message() {
    let database = site().await;
    let (client, mut connection) = database
        .config()
        .connect(NoTls)
        .await
        .expect("the test's server takes connections");
    let (heard, mut messages) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut traffic = stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = traffic.next().await {
            if let AsyncMessage::Notification(_) = message {
                let _ = heard.send(());
            }
        }
    });
    let listening = client.batch_execute("listen notify").await;
    listening.expect("it can listen");

    let (secs, spoke) = first_pass(&database).await;
    assert!(spoke, "it says why it is slow");
    let least = f64::from(RUNS) / MAX_WRITES_WITH_UPSTREAM_NOTIFY;
    assert!(secs >= least, "{RUNS} statuses in {secs} s");
    eventually_eq(
        Duration::from_secs(10),
        "a message for each",
        RUNS,
        async || i32::try_from(messages.len()).expect("they are counted"),
    )
    .await;
    messages.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_pass_does_not_wait_for_triggers_that_are_off() {
    let database = site().await;
    let off = "alter table runs_v3 disable trigger notify_ui_runs_v3";
    let switched = database.client().await.batch_execute(off).await;
    switched.expect("it is installed");
    let (secs, spoke) = first_pass(&database).await;
    assert!(!spoke);
    let least = f64::from(RUNS) / MAX_WRITES_WITH_UPSTREAM_NOTIFY;
    assert!(secs < least, "{RUNS} statuses in {secs} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_says_so_and_keeps_to_the_rate_too() {
    let database = site().await;
    for words in [&["migrate", "up"][..], &["backfill"]] {
        let start = std::time::Instant::now();
        let output = Launch::on(&database).args(words).output().await;
        assert!(output.status.success(), "{words:?}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("notify_ui trigger"), "{words:?}: {said}");
        if words == ["backfill"] {
            let least = f64::from(RUNS) / MAX_WRITES_WITH_UPSTREAM_NOTIFY;
            let secs = start.elapsed().as_secs_f64();
            assert!(secs >= least, "{RUNS} statuses in {secs} s");
        }
    }
    eventually_no_drift(&database.client().await).await;
}
