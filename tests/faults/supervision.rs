//! Start, shutdown and fatal errors of the daemon.

use std::time::{Duration, Instant};

use testkit::postgres::{Options, Postgres};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::{command, run};
use testkit::daemon::{Daemon, Launch};
use testkit::database::{Database, UPSTREAM};
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::random_writers::RandomWriters;
use testkit::seed::Seed;
use testkit::wait::{eventually, eventually_eq};

const TIMEOUT: Duration = Duration::from_secs(30);

/// The default of `--shutdown-timeout`.
const DEADLINE: Duration = Duration::from_secs(10);

/// An idle daemon probes its server once a second; its other statements come much later.
const NOTICED: Duration = Duration::from_secs(8);

async fn readiness(daemon: &Daemon) -> Option<u16> {
    daemon.get("/readyz").await.map(|(code, _)| code)
}

/// The reason in the last line of the log.
fn reason(daemon: &Daemon) -> String {
    let log = daemon.log();
    let last = log.last().expect("a daemon that gives up says why");
    assert_eq!(last["message"], "command failed", "{log:?}");
    last["error"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_and_sigint_stop_the_daemon_cleanly_under_load() {
    let seed = Seed::from_env();
    let database = Database::fresh().await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let daemon = Launch::on(&database).start().await;
    let traffic = RandomWriters::start(&database.config(), &seed, 3, Duration::from_millis(1));
    for interrupt in [false, true] {
        let daemon = Launch::on(&database).start().await;
        let before = traffic.written();
        eventually(TIMEOUT, "there is load", async || {
            traffic.written() > before + 200
        })
        .await;
        // An incomplete request does not delay the stop either.
        let mut stranger = TcpStream::connect(daemon.address().await)
            .await
            .expect("it listens");
        stranger.write_all(b"GET /met").await.expect("it reads");
        let start = Instant::now();
        let status = if interrupt {
            daemon.interrupt().await
        } else {
            daemon.terminate().await
        };
        let took = start.elapsed();
        println!("stopped in {took:?}");
        assert_eq!(status.code(), Some(0));
        assert!(took < DEADLINE, "stopped in {took:?}");
        drop(stranger);
    }
    // The leader, which is working.
    let start = Instant::now();
    assert_eq!(daemon.terminate().await.code(), Some(0));
    println!("the leader stopped in {:?}", start.elapsed());
    traffic.stop().await;
    let _daemon = Launch::on(&database).start().await;
    eventually_no_drift(writer.client()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_and_sigint_stop_the_daemon_cleanly_while_the_database_is_down() {
    let server = Postgres::start(Options::default())
        .await
        .expect("a server of our own");
    let database = Database::on(&server).await;
    let (first, second) = (
        Launch::on(&database).start().await,
        Launch::on(&database).start().await,
    );
    server.kill9().await.expect("it can be killed");
    for daemon in [&first, &second] {
        // Both are idle, and both notice.
        eventually_eq(NOTICED, "not ready", Some(503), async || {
            readiness(daemon).await
        })
        .await;
    }
    // A daemon that has never reached the database.
    let third = Launch::on(&database).spawn();
    third
        .logged("it waits", |line| {
            line["message"] == "waiting for the database"
        })
        .await;
    let start = Instant::now();
    assert_eq!(first.terminate().await.code(), Some(0));
    assert_eq!(second.interrupt().await.code(), Some(0));
    assert_eq!(third.terminate().await.code(), Some(0));
    println!("all three stopped in {:?}", start.elapsed());
    assert!(start.elapsed() < DEADLINE);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_stops_the_daemon_with_the_reason() {
    let database = Database::fresh().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let daemon = Launch::on(&database)
        .args(&["run", "--migrate", "--metrics-listen", &address])
        .spawn();
    assert_eq!(daemon.exit().await.code(), Some(1));
    let reason = reason(&daemon);
    assert!(
        reason.contains("cannot listen on") && reason.contains(&address),
        "{reason}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_started_before_its_database_waits_for_it() {
    let (database, beside) = (Database::empty().await, Database::empty().await);
    let admin = beside.client().await;
    let name = database.name();
    run(&admin, &format!("drop database {name}")).await;
    let daemon = Launch::on(&database).spawn();
    daemon
        .logged("it waits", |line| {
            line["message"] == "waiting for the database"
        })
        .await;
    assert!(matches!(daemon.get("/healthz").await, Some((200, _))));
    assert_eq!(readiness(&daemon).await, Some(503));

    run(&admin, &format!("create database {name}_made")).await;
    let mut config = database.config();
    config.dbname(format!("{name}_made"));
    let client = testkit::database::connect(&config).await;
    run(&client, UPSTREAM).await;
    drop(client);
    eventually(TIMEOUT, "the database has its name", async || {
        let rename = format!("alter database {name}_made rename to {name}");
        admin.batch_execute(&rename).await.is_ok()
    })
    .await;
    daemon.ready().await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let id = writer.insert_run("F", Some(now / 1000)).await;
    writer.attempt_ok("F", id, "True", now).await;
    eventually_status(&writer, "F", id, "completed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_continues_after_the_indexer_is_removed_and_installed_again() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let daemon = Launch::on(&database).start().await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let mut ids = Vec::new();
    for _ in 0..50 {
        let id = writer.insert_run("F", Some(now / 1000)).await;
        writer.attempt_ok("F", id, "False", now).await;
        ids.push(id);
    }
    eventually_no_drift(writer.client()).await;
    for round in 1..=2 {
        command(&database, "migrate down").await;
        eventually_eq(TIMEOUT, "not able", Some(503), async || {
            readiness(&daemon).await
        })
        .await;
        // Evidence of this time has no event: the backfill finds it.
        writer.attempt("F", ids[round], now + 1).await;
        let lines = daemon.log().len();
        assert!(
            lines < 100,
            "{lines} lines are the log of one that crash-loops"
        );
        assert!(matches!(daemon.get("/healthz").await, Some((200, _))));

        command(&database, "migrate up").await;
        eventually_status(&writer, "F", ids[round], "running").await;
        daemon.ready().await;
        eventually_no_drift(writer.client()).await;
        // The queue's ids begin again, below those that the worker has seen.
        writer.attempt_ok("F", ids[0], "True", now + 1).await;
        eventually_status(&writer, "F", ids[0], "completed").await;
    }
    assert!(daemon.terminate().await.success());
}
