//! Two transactions that evaluate or write one run at the same time, in every relevant order. No
//! daemon runs: the test holds the transactions open itself, so that each order is certain.

use std::time::Duration;

use rand::RngExt as _;
use rand::seq::SliceRandom as _;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{apply, drain, migrate, queued, run};
use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::drift::{differences, eventually_no_drift, eventually_status};
use testkit::seed::Seed;
use testkit::wait::eventually;
use testkit::writer::Writer;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A run whose heartbeat became stale a second ago, before any sweep.
async fn stale_run(writer: &Writer) -> i32 {
    writer.insert_flow("F").await;
    let now = writer.now_secs().await;
    let run = writer.insert_run("F", Some(now - 361)).await;
    drain(writer.client()).await;
    // The sweep has to find it, not the event of its insert.
    let running = "update runs_v3 set run_status = 'running'";
    super::run(writer.client(), running).await;
    run
}

/// A session that must not have to wait: it fails instead of waiting forever.
async fn session(database: &Database) -> Client {
    let client = database.client().await;
    run(&client, "set lock_timeout = '10s'").await;
    client
}

async fn assert_right(client: &Client) {
    let (waiting, wrong) = differences(client).await;
    assert_eq!((waiting, wrong), (0, Vec::new()));
}

/// Waits until a session of the test's database waits for a row.
async fn session_waits_for_row(client: &Client) {
    const WAITING: &str = "\
select exists (select
                 from pg_stat_activity
                where datname = current_database()
                  and wait_event_type = 'Lock')";
    eventually(TIMEOUT, "a session waits for the row", async || {
        client
            .query_one(WAITING, &[])
            .await
            .expect("activity can be read")
            .get(0)
    })
    .await;
}

#[tokio::test]
async fn a_completion_overwrites_a_sweep_that_began_first() {
    let database = Database::fresh().await;
    migrate(&database).await;
    let (writer, sweep) = (database.writer().await, session(&database).await);
    let id = stale_run(&writer).await;

    run(&sweep, "begin").await;
    assert!(apply(&sweep, "F", id).await.0.is_some());
    // Writing evidence does not wait for the lock on the run.
    let now = writer.now_ms().await;
    writer.attempt_ok("F", id, "True", now).await;
    run(&sweep, "commit").await;

    assert_eq!(writer.status("F", id).await, "failed");
    assert_eq!(queued(&sweep).await, 1);
    drain(&sweep).await;
    assert_eq!(writer.status("F", id).await, "completed");
    assert_right(&sweep).await;
}

#[tokio::test]
async fn a_sweep_does_not_overwrite_a_completion_that_began_first() {
    let database = Database::fresh().await;
    migrate(&database).await;
    let writer = database.writer().await;
    let (worker, sweep) = (session(&database).await, session(&database).await);
    let id = stale_run(&writer).await;
    let now = writer.now_ms().await;
    writer.attempt_ok("F", id, "True", now).await;

    run(&worker, "begin").await;
    assert_eq!(drain(&worker).await, 1);
    // The sweep has seen the stale heartbeat, and neither waits nor writes.
    let (changes, skipped) = apply(&sweep, "F", id).await;
    assert_eq!((changes, skipped.is_some()), (None, true));
    run(&worker, "commit").await;
    assert_eq!(writer.status("F", id).await, "completed");
    assert_eq!(
        drain(&sweep).await,
        1,
        "what was skipped is looked at again"
    );
    assert_eq!(writer.status("F", id).await, "completed");
    assert_right(&sweep).await;
}

#[tokio::test]
async fn a_sweep_before_a_completion_commits_leaves_the_event_in_the_queue() {
    let database = Database::fresh().await;
    migrate(&database).await;
    let (writer, sweep) = (database.writer().await, session(&database).await);
    let id = stale_run(&writer).await;

    run(writer.client(), "begin").await;
    let now = writer.now_ms().await;
    writer.attempt_ok("F", id, "True", now).await;
    assert!(apply(&sweep, "F", id).await.0.is_some());
    assert_eq!(drain(&sweep).await, 0, "the event is not committed");
    assert_eq!(writer.status("F", id).await, "failed");
    run(writer.client(), "commit").await;
    assert_eq!(drain(&sweep).await, 1);
    assert_eq!(writer.status("F", id).await, "completed");
    assert_right(&sweep).await;
}

#[tokio::test]
async fn a_sweep_that_meets_an_uncommitted_heartbeat_requeues_the_run() {
    let database = Database::fresh().await;
    migrate(&database).await;
    let (writer, sweep) = (database.writer().await, session(&database).await);
    let id = stale_run(&writer).await;

    run(writer.client(), "begin").await;
    // Less than a minute after the last one: no trigger fires.
    let now = writer.now_secs().await;
    assert!(writer.heartbeat("F", id, now - 310).await);
    let (changes, skipped) = apply(&sweep, "F", id).await;
    assert_eq!((changes, skipped.is_some()), (None, true));
    run(writer.client(), "commit").await;
    assert_eq!(drain(&sweep).await, 1);
    assert_eq!(writer.status("F", id).await, "running");
    assert_right(&sweep).await;
}

#[tokio::test]
async fn a_heartbeat_that_waited_for_a_sweep_enqueues_the_run() {
    let database = Database::fresh().await;
    migrate(&database).await;
    let (writer, sweep) = (database.writer().await, session(&database).await);
    let id = stale_run(&writer).await;
    let now = writer.now_secs().await;

    run(&sweep, "begin").await;
    assert!(apply(&sweep, "F", id).await.0.is_some());
    let beating = tokio::spawn(async move {
        assert!(writer.heartbeat("F", id, now - 310).await);
        writer
    });
    let watcher = database.client().await;
    session_waits_for_row(&watcher).await;
    run(&sweep, "commit").await;
    let writer = beating.await.expect("the heartbeat is written");

    // The heartbeat's statement began before the sweep committed, and its trigger still sees the
    // failure.
    assert_eq!(writer.status("F", id).await, "failed");
    assert_eq!(drain(&sweep).await, 1);
    assert_eq!(writer.status("F", id).await, "running");
    assert_right(&sweep).await;
}

#[tokio::test]
async fn of_two_concurrent_evaluations_the_second_sees_newer_evidence() {
    let database = Database::fresh().await;
    migrate(&database).await;
    let writer = database.writer().await;
    let (first, second) = (session(&database).await, session(&database).await);
    let id = stale_run(&writer).await;
    let now = writer.now_ms().await;
    writer.attempt_ok("F", id, "False", now).await;

    run(&first, "begin").await;
    assert_eq!(drain(&first).await, 1);
    writer.attempt_ok("F", id, "True", now + 1).await;
    assert_eq!(drain(&second).await, 1);
    run(&first, "commit").await;
    assert_eq!(
        queued(&second).await,
        1,
        "the row was held: back to the queue"
    );
    assert_eq!(writer.status("F", id).await, "failed");
    drain(&second).await;
    assert_eq!(writer.status("F", id).await, "completed");
    assert_right(&second).await;
}

#[tokio::test]
async fn evidence_committed_after_the_rows_were_locked_is_evaluated() {
    let database = Database::fresh().await;
    migrate(&database).await;
    let (writer, sweep) = (database.writer().await, session(&database).await);
    let id = stale_run(&writer).await;

    // The sweep has locked the run's row when it waits for this lock, and reads the evidence only
    // after it.
    let lock = "begin; lock table metadata_v3 in access exclusive mode";
    run(writer.client(), lock).await;
    let evaluating = tokio::spawn(async move {
        let (changes, _) = apply(&sweep, "F", id).await;
        (sweep, changes)
    });
    let watcher = session(&database).await;
    session_waits_for_row(&watcher).await;
    let now = writer.now_ms().await;
    writer.attempt_ok("F", id, "True", now).await;
    run(writer.client(), "commit").await;
    let (sweep, changes) = evaluating.await.expect("no panic");
    let changes = changes.expect("the status was wrong");
    assert_eq!(changes[0]["reason"], "end_succeeded", "{changes}");
    assert_eq!(drain(&sweep).await, 1);
    assert_right(&sweep).await;
}

#[tokio::test]
async fn statuses_are_written_in_read_committed_only() {
    let database = Database::fresh().await;
    migrate(&database).await;
    let client = database.client().await;
    for level in ["repeatable read", "serializable"] {
        run(&client, &format!("begin isolation level {level}")).await;
        let calls = [
            "select status_indexer.apply('{F}', '{1}', null)",
            "insert into status_indexer.queue (flow_id, run_number) values ('F', 1);
             select status_indexer.drain(0, 10, null)",
        ];
        for call in calls {
            run(&client, "savepoint call").await;
            let error = client.batch_execute(call).await.expect_err(level);
            assert_eq!(error.code(), Some(&SqlState::INVALID_TRANSACTION_STATE));
            run(&client, "rollback to call").await;
        }
        run(&client, "rollback").await;
    }
}

/// `attempt` or `attempt_ok` with its value, and its time since the run's start.
type Event = (&'static str, &'static str, i64);

const STORY: [Event; 4] = [
    ("attempt", "0", 1),
    ("attempt_ok", "False", 2),
    ("attempt", "1", 3),
    ("attempt_ok", "True", 4),
];

#[tokio::test(flavor = "multi_thread")]
async fn events_in_any_order_and_duplicated_give_the_same_status() {
    let seed = Seed::from_env();
    let mut random = seed.generator(0);
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let daemon = Launch::on(&database).start().await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let mut expected = Vec::new();
    for order in permutations(&STORY) {
        let id = writer.insert_run("F", Some(now / 1000)).await;
        let mut events = order.clone();
        for event in order {
            if random.random_bool(0.4) {
                let place = random.random_range(0..=events.len());
                events.insert(place, event);
            }
        }
        for (field, value, ms) in events {
            writer
                .metadata("F", id, "end", field, value, now + ms)
                .await;
        }
        expected.push((id, "completed"));
    }
    // Every subset of the events.
    for mask in 0..16_u8 {
        let mut events: Vec<Event> = (0..4)
            .filter(|bit| mask & (1 << bit) != 0)
            .map(|bit| STORY[bit])
            .collect();
        events.shuffle(&mut random);
        let id = writer.insert_run("F", Some(now / 1000)).await;
        for (field, value, ms) in &events {
            writer
                .metadata("F", id, "end", field, value, now + ms)
                .await;
        }
        let status = match (mask & 0b1000 != 0, mask & 0b0010 != 0, mask & 0b0100 != 0) {
            (true, _, _) => "completed",
            (false, true, false) => "failed",
            _ => "running",
        };
        expected.push((id, status));
    }
    for (id, status) in expected {
        eventually_status(&writer, "F", id, status).await;
    }
    eventually_no_drift(writer.client()).await;
    drop(daemon);
}

fn permutations(events: &[Event]) -> Vec<Vec<Event>> {
    if events.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (place, first) in events.iter().enumerate() {
        let mut rest = events.to_vec();
        rest.remove(place);
        for mut order in permutations(&rest) {
            order.insert(0, *first);
            all.push(order);
        }
    }
    all
}
