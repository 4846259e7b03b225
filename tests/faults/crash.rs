//! The daemon and the server are killed with SIGKILL, at the worst moment.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use testkit::postgres::{Options, Postgres};

use super::{drain_is_stuck, named, run, sessions};
use testkit::daemon::{Daemon, Launch};
use testkit::database::Database;
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::random_writers::RandomWriters;
use testkit::seed::Seed;
use testkit::wait::{eventually, eventually_eq, within};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Kills a daemon whose drain has claimed events and waits for a lock that the test holds.
async fn kill_between_claim_and_commit(release_at_once: bool) {
    const HALF_DONE: &str = "\
select count(*)
  from runs_v3 r
 where (run_status = 'completed') = exists (select
                                              from status_indexer.queue q
                                             where q.flow_id = r.flow_id
                                               and q.run_number = r.run_number)";
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let (holder, watcher) = (database.client().await, database.client().await);
    let daemon = named(&database, "victim").start().await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let mut ids = Vec::new();
    for _ in 0..30 {
        ids.push(writer.insert_run("F", Some(now / 1000)).await);
    }
    // `apply` needs this table only after the claim and after the runs' rows are locked.
    run(
        &holder,
        "begin; lock table status_indexer.timers in access exclusive mode",
    )
    .await;
    for id in &ids {
        writer.attempt_ok("F", *id, "True", now).await;
    }
    eventually(TIMEOUT, "a batch is being applied", async || {
        drain_is_stuck(&watcher, "victim").await
    })
    .await;
    let killing = daemon.kill9();
    if release_at_once {
        tokio::join!(killing, run(&holder, "commit"));
    } else {
        killing.await;
    }
    eventually_eq(TIMEOUT, "the dead daemon's sessions end", 0, async || {
        sessions(&watcher, "victim").await
    })
    .await;
    let half_done: i64 = watcher
        .query_one(HALF_DONE, &[])
        .await
        .expect("the tables are there")
        .get(0);
    assert_eq!(
        half_done, 0,
        "an event is claimed if and only if it is applied"
    );
    if !release_at_once {
        assert_eq!(super::queued(&watcher).await, 30);
        run(&holder, "commit").await;
    }

    let _daemon = Launch::on(&database).start().await;
    for id in ids {
        eventually_status(&writer, "F", id, "completed").await;
    }
    eventually_no_drift(&watcher).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_between_claim_and_commit_loses_nothing() {
    kill_between_claim_and_commit(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_outlives_its_daemon_is_atomic() {
    kill_between_claim_and_commit(true).await;
}

/// Requests `/healthz` continuously until stopped; returns the number of requests, and the answers
/// other than 200.
async fn watch_health(address: SocketAddr, stop: Arc<AtomicBool>) -> (u32, Vec<String>) {
    let url = format!("http://{address}/healthz");
    let client = reqwest::Client::builder().no_proxy().build();
    let client = client.expect("a plain client needs nothing");
    let (mut asked, mut bad) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        asked += 1;
        match client.get(&url).send().await {
            Ok(answer) if answer.status().as_u16() == 200 => {}
            other => bad.push(format!("{other:?}")),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (asked, bad)
}

async fn readiness(daemon: &Daemon) -> Option<u16> {
    daemon.get("/readyz").await.map(|(code, _)| code)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_status_is_right_after_a_server_crash_under_load() {
    let seed = Seed::from_env();
    // Durable, so that the writers' commits survive; the daemon's own commits are asynchronous, and
    // a crash undoes some of them.
    let options = Options::default()
        .set("fsync", "on")
        .set("full_page_writes", "on");
    let server = Postgres::start(options).await.expect("a server of our own");
    let database = Database::on(&server).await;
    database.writer().await.insert_flow("F").await;
    let daemon = Launch::on(&database).start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let health = tokio::spawn(watch_health(daemon.address().await, Arc::clone(&stop)));
    let traffic = RandomWriters::start(&database.config(), &seed, 4, Duration::from_millis(2));

    for crash in [true, true, false] {
        let before = traffic.written();
        eventually(TIMEOUT, "there is load", async || {
            traffic.written() > before + 400
        })
        .await;
        if crash {
            server.kill9().await.expect("it can be killed");
            eventually_eq(
                TIMEOUT,
                "not ready without a server",
                Some(503),
                async || readiness(&daemon).await,
            )
            .await;
            server.start_again().await.expect("it comes up on its data");
        } else {
            server.restart().await.expect("it stops and starts");
        }
        eventually_eq(TIMEOUT, "ready again", Some(200), async || {
            readiness(&daemon).await
        })
        .await;
    }
    let before = traffic.written();
    eventually(TIMEOUT, "there is load", async || {
        traffic.written() > before + 100
    })
    .await;
    traffic.stop().await;
    eventually_no_drift(&database.client().await).await;

    stop.store(true, Ordering::Relaxed);
    let (asked, bad) = within(TIMEOUT, "the last answer", health)
        .await
        .expect("no panic");
    assert!(asked > 20 && bad.is_empty(), "{asked} answers, {bad:?}");
    assert!(daemon.terminate().await.success());
    server.stop().await.expect("it stops");
}
