//! `--notify-ui`: the messages for the web UI, received as its backend receives them.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_postgres::{AsyncMessage, Client, NoTls};

use testkit::daemon::{Daemon, Launch};
use testkit::database::Database;
use testkit::drift::eventually_status;
use testkit::wait::within;

const SOON: Duration = Duration::from_secs(30);

/// A session that listens as the UI backend does. The client keeps the session.
async fn listen(database: &Database) -> (Client, UnboundedReceiver<Value>) {
    let (client, mut connection) = database
        .config()
        .connect(NoTls)
        .await
        .expect("the test's server accepts connections");
    let (received, messages) = unbounded_channel();
    tokio::spawn(async move {
        let mut traffic = stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = traffic.next().await {
            if let AsyncMessage::Notification(message) = message {
                let _ = received.send(serde_json::from_str(message.payload()).expect("JSON"));
            }
        }
    });
    let listening = client.batch_execute("listen notify").await;
    listening.expect("the session can listen");
    (client, messages)
}

async fn next(messages: &mut UnboundedReceiver<Value>) -> Value {
    let message = within(SOON, "a message arrives", messages.recv()).await;
    message.expect("the session is alive")
}

fn message(run: i32) -> Value {
    json!({
        "table": "runs_v3", "schema": "public", "operation": "UPDATE",
        "data": {"flow_id": "F", "run_number": run},
    })
}

async fn daemon(database: &Database, flags: &[&str]) -> Daemon {
    let launch = Launch::on(database).env("RUN_INACTIVE_CUTOFF_TIME", "4");
    let launch = flags.iter().fold(launch, |launch, flag| launch.arg(flag));
    launch.start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ui_is_notified_of_what_it_cannot_know_after_the_status_is_committed() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    // Written by the backfill, of which the UI is not notified.
    writer.insert_run("F", None).await;
    let (_session, mut messages) = listen(&database).await;
    let daemon = daemon(&database, &["--notify-ui"]).await;

    // A heartbeat that stops, and comes back.
    let run = writer.insert_run("F", Some(writer.now_secs().await)).await;
    assert_eq!(next(&mut messages).await, message(run));
    assert_eq!(writer.status("F", run).await, "failed");
    writer
        .heartbeat("F", run, writer.now_secs().await + 10)
        .await;
    // In range only where the heartbeat is at most four seconds ahead.
    writer
        .client()
        .batch_execute("update runs_v3 set last_heartbeat_ts = extract(epoch from clock_timestamp())::bigint + 3")
        .await
        .expect("the runs can be written");
    let mut received = Vec::new();
    while !received.contains(&message(run)) {
        received.push(next(&mut messages).await);
    }
    eventually_status(&writer, "F", run, "running").await;

    // An end that succeeds is known to the UI; a retry after a failure is not.
    let now = writer.now_ms().await;
    let done = writer.insert_run("F", Some(now / 1000)).await;
    writer.attempt_ok("F", done, "True", now).await;
    let retried = writer.insert_run("F", Some(now / 1000)).await;
    writer.attempt_ok("F", retried, "False", now).await;
    eventually_status(&writer, "F", retried, "failed").await;
    writer.attempt("F", retried, now + 1).await;
    let mut received = Vec::new();
    while !received.contains(&message(retried)) {
        received.push(next(&mut messages).await);
    }
    assert!(!received.contains(&message(done)), "{received:?}");
    assert_eq!(writer.status("F", retried).await, "running");
    let sent = daemon
        .metric("status_indexer_ui_notifications_total{outcome=\"sent\"}")
        .await;
    assert!(sent >= Some(3.0), "{sent:?}");
    assert!(daemon.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_flag_no_message_is_sent() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let (session, mut messages) = listen(&database).await;
    let daemon = daemon(&database, &[]).await;
    let run = writer
        .insert_run("F", Some(writer.now_secs().await - 2))
        .await;
    eventually_status(&writer, "F", run, "failed").await;
    let last = "select pg_notify('notify', '\"the last\"')";
    session.batch_execute(last).await.expect("it can be sent");
    assert_eq!(next(&mut messages).await, "the last");
    assert!(daemon.terminate().await.success());
}
