//! A network that stops delivering without closing connections.

use std::time::Duration;

use testkit::daemon::Launch;
use testkit::database::{Database, shared};
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::proxy::Proxy;
use testkit::random_writers::RandomWriters;
use testkit::seed::Seed;
use testkit::wait::{eventually, eventually_eq};

const TIMEOUT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn an_unresponsive_connection_is_noticed_and_no_event_is_lost() {
    let database = Database::fresh().await;
    let proxy = Proxy::to(shared().await.address()).await;
    let writer = database.writer().await;
    let daemon = Launch::through(&database, proxy.address()).start().await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let run = writer.insert_run("F", Some(now / 1000)).await;
    eventually_eq(TIMEOUT, "it listens", Some(1.0), async || {
        daemon.metric("status_indexer_listener_connected").await
    })
    .await;

    proxy.black_hole();
    writer.attempt_ok("F", run, "True", now).await;
    eventually_eq(TIMEOUT, "the silence is noticed", Some(0.0), async || {
        daemon.metric("status_indexer_listener_connected").await
    })
    .await;
    eventually_eq(TIMEOUT, "not ready", Some(503), async || {
        daemon.get("/readyz").await.map(|(code, _)| code)
    })
    .await;
    assert!(matches!(daemon.get("/healthz").await, Some((200, _))));
    assert_eq!(writer.status("F", run).await, "running");

    proxy.heal();
    eventually_status(&writer, "F", run, "completed").await;
    daemon.ready().await;
    eventually_no_drift(writer.client()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_break_under_load_lose_no_event() {
    let seed = Seed::from_env();
    let database = Database::fresh().await;
    let proxy = Proxy::to(shared().await.address()).await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let daemon = Launch::through(&database, proxy.address()).start().await;
    let traffic = RandomWriters::start(&database.config(), &seed, 2, Duration::from_millis(5));
    for _ in 0..5 {
        let before = traffic.written();
        eventually(TIMEOUT, "there is load", async || {
            traffic.written() > before + 40
        })
        .await;
        // Only a connection that is there can be lost.
        eventually_eq(TIMEOUT, "it listens", Some(1.0), async || {
            daemon.metric("status_indexer_listener_connected").await
        })
        .await;
        let lost = daemon
            .metric("status_indexer_listener_reconnects_total")
            .await;
        proxy.cut();
        eventually(TIMEOUT, "the loss is counted", async || {
            daemon
                .metric("status_indexer_listener_reconnects_total")
                .await
                > lost
        })
        .await;
    }
    traffic.stop().await;
    eventually_no_drift(writer.client()).await;
    daemon.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_waits_for_a_server_that_is_unresponsive_at_the_start() {
    let database = Database::fresh().await;
    let proxy = Proxy::to(shared().await.address()).await;
    proxy.black_hole();
    let daemon = Launch::through(&database, proxy.address()).spawn();
    assert!(matches!(daemon.get("/healthz").await, Some((200, _))));
    assert!(matches!(daemon.get("/readyz").await, Some((503, _))));
    daemon
        .logged("it waits", |line| {
            line["message"] == "waiting for the database"
        })
        .await;
    // What was sent before is lost with the abandoned connection.
    proxy.cut();
    proxy.heal();
    daemon.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_with_an_unresponsive_server_stops_on_a_signal() {
    let database = Database::fresh().await;
    let proxy = Proxy::to(shared().await.address()).await;
    let daemon = Launch::through(&database, proxy.address()).start().await;
    proxy.black_hole();
    eventually_eq(TIMEOUT, "the silence is noticed", Some(0.0), async || {
        daemon.metric("status_indexer_listener_connected").await
    })
    .await;
    assert!(daemon.terminate().await.success());

    let waiting = Launch::through(&database, proxy.address()).spawn();
    waiting.address().await;
    assert!(waiting.terminate().await.success());
}
