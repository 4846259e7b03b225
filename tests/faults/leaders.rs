//! Two daemons on one database, and faults of the leader.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_postgres::Client;

use super::{drain_is_stuck, leads, named, run, sessions};
use testkit::daemon::Daemon;
use testkit::database::Database;
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::wait::{eventually, eventually_eq};

const TIMEOUT: Duration = Duration::from_secs(30);

/// The promised time for a follower to take over.
const TAKEN_OVER: Duration = Duration::from_secs(5);

/// A leader named `first` and a follower named `second`.
async fn pair(database: &Database) -> (Daemon, Daemon) {
    let first = named(database, "first").start().await;
    eventually(TIMEOUT, "the first leads", async || leads(&first).await).await;
    let second = named(database, "second").start().await;
    assert!(!leads(&second).await);
    (first, second)
}

/// Locks on rows or tables of the runs that sessions of this name hold.
async fn locks(client: &Client, name: &str) -> i64 {
    const LOCKS: &str = "\
select count(*)
  from pg_locks l
  join pg_stat_activity a on a.pid = l.pid
 where a.application_name = $1
   and l.relation = 'runs_v3'::regclass";
    client
        .query_one(LOCKS, &[&name])
        .await
        .expect("locks can be read")
        .get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_takes_over_within_five_seconds_after_its_leader_dies() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let (first, second) = pair(&database).await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let id = writer.insert_run("F", Some(now / 1000)).await;

    let start = Instant::now();
    first.kill9().await;
    writer.attempt_ok("F", id, "True", now).await;
    eventually_status(&writer, "F", id, "completed").await;
    let took = start.elapsed();
    println!("taken over after {took:?}");
    assert!(took < TAKEN_OVER, "taken over after {took:?}");
    assert!(leads(&second).await);

    // After an orderly stop the next leader takes over at once, and there is only one.
    let third = named(&database, "third").start().await;
    assert!(!leads(&third).await);
    assert!(second.terminate().await.success());
    eventually(TIMEOUT, "the third leads", async || leads(&third).await).await;
    eventually_no_drift(writer.client()).await;
}

/// The time of a line of the log.
fn time(line: &Value) -> f64 {
    let text = line["timestamp"].as_str().unwrap_or_default();
    let clock = text.split(['T', 'Z']).nth(1).unwrap_or_default();
    let parts = clock.split(':').filter_map(|part| part.parse::<f64>().ok());
    parts.fold(0.0, |sum, part| sum * 60.0 + part)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_wakes_its_follower() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let (mut first, mut second) = pair(&database).await;
    writer.insert_flow("F").await;
    let mut woken = 0;
    for _ in 0..4 {
        let now = writer.now_ms().await;
        let id = writer.insert_run("F", Some(now / 1000)).await;
        assert!(first.terminate().await.success());
        writer.attempt_ok("F", id, "True", now).await;
        let leading = second
            .logged("it leads", |line| line["message"] == "leading")
            .await;
        let log = first.log();
        let stopping = log.iter().find(|line| line["message"] == "stopping");
        if let Some(stopping) = stopping {
            println!("taken over after {:.3} s", time(&leading) - time(stopping));
        }
        eventually_status(&writer, "F", id, "completed").await;
        // By chance, its timer may have been first.
        woken += u32::from(leading["lock_was_released"] == true);
        first = second;
        second = named(&database, "next").start().await;
    }
    assert!(woken > 0, "every follower waited for its timer");
    eventually_no_drift(writer.client()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_frozen_within_a_batch_keeps_no_lock_and_writes_nothing_stale() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let (holder, watcher) = (database.client().await, database.client().await);
    let (first, second) = pair(&database).await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(writer.insert_run("F", Some(now / 1000)).await);
    }
    run(
        &holder,
        "begin; lock table status_indexer.timers in access exclusive mode",
    )
    .await;
    for id in &ids {
        writer.attempt_ok("F", *id, "True", now).await;
    }
    eventually(TIMEOUT, "a batch is being applied", async || {
        drain_is_stuck(&watcher, "first").await
    })
    .await;
    first.freeze().await;
    let start = Instant::now();
    run(&holder, "commit").await;
    eventually_eq(
        Duration::from_secs(2),
        "its locks are gone",
        0,
        async || locks(&watcher, "first").await,
    )
    .await;
    // The evidence changes while the leader is frozen.
    for id in &ids {
        writer.attempt_ok("F", *id, "False", now + 1).await;
    }
    let beats = Instant::now();
    assert!(writer.heartbeat("F", ids[0], now / 1000 + 10).await);
    println!("a heartbeat took {:?}", beats.elapsed());
    for id in &ids {
        eventually_status(&writer, "F", *id, "failed").await;
    }
    println!("the other took over after {:?}", start.elapsed());
    assert!(leads(&second).await);

    // Before PostgreSQL 14 the server does not end an idle session, so the first daemon still has the
    // lock, and the second gives way.
    first.thaw();
    eventually(TIMEOUT, "one of them leads", async || {
        leads(&first).await != leads(&second).await
    })
    .await;
    eventually_no_drift(&watcher).await;
    for id in &ids {
        assert_eq!(writer.status("F", *id).await, "failed");
    }
    // After the thaw it works again.
    second.kill9().await;
    writer.attempt_ok("F", ids[0], "True", now + 2).await;
    eventually_status(&writer, "F", ids[0], "completed").await;
    assert_eq!(sessions(&watcher, "second").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_loses_its_session_is_elected_again_or_follows() {
    const END: &str = "\
select count(pg_terminate_backend(pid))
  from pg_locks
 where locktype = 'advisory'
   and database = (select oid from pg_database where datname = current_database())";
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let (first, second) = pair(&database).await;
    writer.insert_flow("F").await;
    for value in ["True", "False", "True"] {
        let ended: i64 = writer
            .client()
            .query_one(END, &[])
            .await
            .expect("sessions can be ended")
            .get(0);
        assert_eq!(ended, 1, "exactly one daemon leads");
        let now = writer.now_ms().await;
        let id = writer.insert_run("F", Some(now / 1000)).await;
        writer.attempt_ok("F", id, value, now).await;
        let status = if value == "True" {
            "completed"
        } else {
            "failed"
        };
        eventually_status(&writer, "F", id, status).await;
        eventually(TIMEOUT, "one of the two leads", async || {
            leads(&first).await != leads(&second).await
        })
        .await;
    }
    eventually_no_drift(writer.client()).await;
}
