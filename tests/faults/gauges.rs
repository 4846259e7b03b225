//! What an operator sees of faults that harm no status: the metrics that alerts are made of.

use std::time::Duration;

use super::run;
use testkit::daemon::Launch;
use testkit::database::{Database, shared};
use testkit::drift::eventually_no_drift;
use testkit::pooler::Pooler;
use testkit::postgres::{Options, Postgres};
use testkit::proxy::Proxy;
use testkit::wait::{eventually, eventually_eq};

const TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_write_transaction_longer_than_the_cutoff_is_visible_until_it_ends() {
    const OUTDATED: &str = "status_indexer_read_bounds_outdated_seconds";
    const SLOWER: &str = "select not no_deadline from status_indexer.read_state";
    // A server of the test's own: bounds wait for the transactions of all databases.
    let server = Postgres::start(Options::default()).await;
    let server = server.expect("a server of our own");
    let database = Database::on(&server).await;
    let launch = Launch::on(&database).env("RUN_INACTIVE_CUTOFF_TIME", "8");
    let (leader, follower) = (launch.clone().start().await, launch.start().await);
    let (client, writer) = (database.client().await, database.writer().await);
    for daemon in [&leader, &follower] {
        eventually_eq(TIMEOUT, "the bounds are current", Some(0.0), async || {
            daemon.metric(OUTDATED).await
        })
        .await;
    }

    run(&client, "begin; select txid_current()").await;
    for daemon in [&leader, &follower] {
        eventually(TIMEOUT, "the bounds are outdated", async || {
            daemon.metric(OUTDATED).await > Some(1.0)
        })
        .await;
    }
    let slower = writer.client().query_one(SLOWER, &[]).await;
    assert!(slower.expect("the view exists").get::<_, bool>(0));
    // Slower, and otherwise well.
    leader.ready().await;
    run(&client, "commit").await;
    for daemon in [&leader, &follower] {
        eventually_eq(TIMEOUT, "the bounds are current", Some(0.0), async || {
            daemon.metric(OUTDATED).await
        })
        .await;
    }
    eventually_no_drift(writer.client()).await;
    drop((leader, follower));
    server.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_get_no_connection_are_counted_from_the_first_on() {
    const TIMEOUTS: &str = "status_indexer_pool_timeouts_total";
    let database = Database::fresh().await;
    let proxy = Proxy::to(shared().await.address()).await;
    let launch = Launch::through(&database, proxy.address());
    let daemon = launch.arg("--pool-max=2").start().await;
    assert_eq!(daemon.metric(TIMEOUTS).await, Some(0.0));
    proxy.black_hole();
    eventually(TIMEOUT, "calls wait in vain", async || {
        daemon.metric(TIMEOUTS).await > Some(0.0)
    })
    .await;
    proxy.heal();
    daemon.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_pooler_is_visible() {
    const POOLING: &str = "status_indexer_transaction_pooling";
    const CONNECTED: &str = "status_indexer_listener_connected";
    let database = Database::fresh().await;
    let direct = Launch::on(&database).start().await;
    assert_eq!(direct.metric(POOLING).await, Some(0.0));
    eventually_eq(TIMEOUT, "it listens", Some(1.0), async || {
        direct.metric(CONNECTED).await
    })
    .await;
    assert!(direct.terminate().await.success());

    let pooler = Pooler::to(shared().await.address(), "postgres", 3).await;
    let launch = Launch::through(&database, pooler.address());
    // The database is migrated: a pooler does not suffice for that.
    let pooled = launch.args(&["run", "--metrics-listen=127.0.0.1:0"]);
    let pooled = pooled.start().await;
    assert_eq!(pooled.metric(POOLING).await, Some(1.0));
    assert_eq!(pooled.metric(CONNECTED).await, Some(0.0));
}
