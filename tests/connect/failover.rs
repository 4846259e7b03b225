//! An address that leads to a standby for a while, and to a server that refuses every connection.

use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::drift::eventually_status;
use testkit::proxy::Proxy;
use testkit::standby::Standby;
use tokio_postgres::Config;

use super::server::{Refusing, start};
use super::{logged, set_up_run};

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_to_a_standby_is_used_or_kept() {
    let server = start().await;
    let database = Database::on(&server).await;
    let Some(standby) = Standby::of(&server).await else {
        return;
    };
    let standby_port = standby.url("postgres").parse::<Config>();
    let standby_port = standby_port.expect("a URI").get_ports()[0];
    let proxy = Proxy::to(server.address()).await;
    let daemon = Launch::through(&database, proxy.address()).start().await;
    let (writer, run) = set_up_run(&database).await;

    proxy.retarget(([127, 0, 0, 1], standby_port).into());
    proxy.cut();
    logged(&daemon, "the server is in recovery").await;
    // The address is right again; connections to the standby would stay open.
    proxy.retarget(server.address());
    writer
        .attempt_ok("F", run, "True", writer.now_ms().await)
        .await;
    eventually_status(&writer, "F", run, "completed").await;
    daemon.ready().await;
    let read_only = "status_indexer_db_errors_total{sqlstate=\"25006\"}";
    assert!(matches!(daemon.metric(read_only).await, None | Some(0.0)));
    assert!(daemon.terminate().await.success());
    standby.stop().await;
    server.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_has_no_server_to_give_is_waited_for() {
    let database = Database::fresh().await;
    let server = database.config().get_ports()[0];
    let refusing = Refusing::with("XX000").await;
    let proxy = Proxy::to(refusing.address).await;
    // At the start.
    let daemon = Launch::through(&database, proxy.address()).spawn();
    logged(&daemon, "waiting for the database").await;
    logged(&daemon, "no server to give").await;
    assert_eq!(daemon.get("/readyz").await.map(|(code, _)| code), Some(503));
    proxy.retarget(([127, 0, 0, 1], server).into());
    daemon.ready().await;
    let (writer, run) = set_up_run(&database).await;

    // While it runs.
    proxy.retarget(refusing.address);
    proxy.cut();
    logged(&daemon, "cannot open LISTEN connection").await;
    writer
        .attempt_ok("F", run, "True", writer.now_ms().await)
        .await;
    proxy.retarget(([127, 0, 0, 1], server).into());
    eventually_status(&writer, "F", run, "completed").await;
    let log = format!("{:?}", daemon.log());
    assert!(!log.contains("cannot write the status"), "{log}");
    assert!(daemon.terminate().await.success());
}
