//! Triggers from the writers' side: they see every change, and neither fail nor delay a write.

use std::time::{Duration, Instant};

use testkit::postgres::{Options, Postgres};
use tokio_postgres::Client;

use super::{command, migrate, queued, run};
use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::requirement::server_since;
use testkit::wait::eventually;
use testkit::writer::Writer;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A trigger gives up after 100 ms; its writer ends well before this on any machine.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn changed_deleted_and_moved_evidence_no_longer_counts() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let _daemon = Launch::on(&database).start().await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let one = writer.insert_run("F", Some(now / 1000)).await;
    let other = writer.insert_run("F", Some(now / 1000)).await;
    let row = writer.attempt_ok("F", one, "True", now).await;
    eventually_status(&writer, "F", one, "completed").await;

    let change = async |what: &str| {
        let statement = format!("update metadata_v3 set {what} where id = {row}");
        run(writer.client(), &statement).await;
    };
    change("value = 'False'").await;
    eventually_status(&writer, "F", one, "failed").await;
    change("value = 'rubbish'").await;
    eventually_status(&writer, "F", one, "running").await;
    change("value = 'True'").await;
    eventually_status(&writer, "F", one, "completed").await;
    change(&format!("run_number = {other}")).await;
    eventually_status(&writer, "F", other, "completed").await;
    eventually_status(&writer, "F", one, "running").await;
    change("step_name = 'start'").await;
    eventually_status(&writer, "F", other, "running").await;
    change("step_name = 'end', field_name = 'attempt'").await;
    change("field_name = 'attempt_ok'").await;
    eventually_status(&writer, "F", other, "completed").await;
    run(
        writer.client(),
        &format!("delete from metadata_v3 where id = {row}"),
    )
    .await;
    eventually_status(&writer, "F", other, "running").await;

    // A retry that is deleted again.
    writer.attempt_ok("F", one, "False", now).await;
    let retry = writer.attempt("F", one, now + 1).await;
    eventually_status(&writer, "F", one, "running").await;
    run(
        writer.client(),
        &format!("delete from metadata_v3 where id = {retry}"),
    )
    .await;
    eventually_status(&writer, "F", one, "failed").await;
    eventually_no_drift(writer.client()).await;
}

/// How often this session has called the function of the update and delete triggers since the last
/// report.
async fn calls(client: &Client) -> i64 {
    const CALLS: &str = "\
select coalesce(sum(calls), 0)::int8
  from pg_stat_xact_user_functions
 where funcname = 'enqueue_changed'";
    client
        .query_one(CALLS, &[])
        .await
        .expect("statistics can be read")
        .get(0)
}

#[tokio::test]
async fn a_statement_on_many_rows_calls_the_trigger_for_rows_of_the_end_step_only() {
    const FILL: &str = "\
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
select 'F', n % 50, case when n % 100 < 90 then 'start' else 'end' end, 1,
       case when n % 100 < 95 then 'attempt_ok' else 'x' end, 'True', 't', n
  from generate_series(1, 20000) n";
    let database = Database::fresh().await;
    let client = database.client().await;
    run(&client, FILL).await;
    migrate(&database).await;
    run(&client, "set track_functions = 'all'").await;
    // 90 to 99 of each hundred rows belong to the end step, and 90 to 94 of these are evidence.
    for (statement, called, events) in [
        ("update metadata_v3 set tags = '[]'", 2_000, 0),
        ("update metadata_v3 set value = 'False'", 2_000, 1_000),
        ("delete from metadata_v3 where id % 2 = 0", 1_000, 600),
        ("delete from metadata_v3", 1_000, 400),
        ("update metadata_v3 set value = 'False' where id = -1", 0, 0),
        ("delete from metadata_v3 where id = -1", 0, 0),
    ] {
        run(&client, "begin").await;
        run(&client, "delete from status_indexer.queue").await;
        let before = calls(&client).await;
        run(&client, statement).await;
        assert_eq!(calls(&client).await - before, called, "{statement}");
        assert_eq!(queued(&client).await, events, "{statement}");
        run(&client, "commit").await;
    }
}

/// Every kind of write that fires a trigger; none may fail, or take as long as [`LONGEST_WAIT`].
async fn write_everything(writer: &Writer, id: i32) -> Duration {
    let now = writer.now_ms().await;
    let row = writer.metadata("F", id, "end", "attempt", "1", now).await;
    let changes = [
        format!("update metadata_v3 set value = '2' where id = {row}"),
        format!("delete from metadata_v3 where id = {row}"),
        format!("update runs_v3 set last_heartbeat_ts = null where run_number = {id}"),
        format!("update runs_v3 set last_heartbeat_ts = 1 where run_number = {id}"),
        format!(
            "update runs_v3 set last_heartbeat_ts = {} where run_number = {id}",
            now / 1000
        ),
        "insert into runs_v3 (flow_id, ts_epoch) values ('F', 1)".to_owned(),
        format!(
            "insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
             values ('F', {id}, 'end', 1, 'attempt_ok', 'True', 't', {now})"
        ),
    ];
    let mut longest = Duration::ZERO;
    for change in changes {
        let start = Instant::now();
        run(writer.client(), &change).await;
        longest = longest.max(start.elapsed());
    }
    assert!(longest < LONGEST_WAIT, "a writer waited for {longest:?}");
    longest
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_succeed_without_the_queue_and_an_event_after_the_repair_corrects_the_status() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let daemon = Launch::on(&database).start().await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let id = writer.insert_run("F", Some(now / 1000)).await;
    run(
        writer.client(),
        "alter table status_indexer.queue rename to queue_away",
    )
    .await;
    let longest = write_everything(&writer, id).await;
    println!("without a queue the longest write took {longest:?}");
    assert_eq!(writer.status("F", id).await, "running");
    run(
        writer.client(),
        "alter table status_indexer.queue_away rename to queue",
    )
    .await;
    writer.attempt("F", id, now - 1).await;
    eventually_status(&writer, "F", id, "completed").await;
    daemon.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_succeed_after_the_queue_was_dropped_and_a_new_installation_corrects_the_status() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let daemon = Launch::on(&database).start().await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let id = writer.insert_run("F", Some(now / 1000)).await;
    run(writer.client(), "drop table status_indexer.queue cascade").await;
    write_everything(&writer, id).await;
    eventually(TIMEOUT, "the daemon says that it is not able", async || {
        matches!(daemon.get("/readyz").await, Some((503, _)))
    })
    .await;
    command(&database, "migrate down").await;
    command(&database, "migrate up").await;
    eventually_status(&writer, "F", id, "completed").await;
    daemon.ready().await;
    eventually_no_drift(writer.client()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_wait_briefly_for_a_locked_queue_and_a_later_event_corrects_the_status() {
    let database = Database::fresh().await;
    let (writer, holder) = (database.writer().await, database.client().await);
    let _daemon = Launch::on(&database).start().await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let id = writer.insert_run("F", Some(now / 1000)).await;
    run(
        &holder,
        "begin; lock table status_indexer.queue in access exclusive mode",
    )
    .await;
    let longest = write_everything(&writer, id).await;
    println!("over a locked queue the longest write took {longest:?}");
    assert!(longest >= Duration::from_millis(100), "{longest:?}");
    // Writes that fire no trigger are not affected.
    let beat = Instant::now();
    assert!(writer.heartbeat("F", id, now / 1000 + 10).await);
    assert!(beat.elapsed() < LONGEST_WAIT);
    run(&holder, "commit").await;
    writer.attempt("F", id, now - 1).await;
    eventually_status(&writer, "F", id, "completed").await;
}

/// Fills the notification queue, as a listening session with an open transaction lets it fill.
async fn fill(client: &Client) -> f64 {
    const FILL: &str = "\
select pg_notify('elsewhere', n || repeat('x', 7000))
  from generate_series(1, 4) n";
    const USAGE: &str = "select pg_notification_queue_usage()";
    loop {
        if client.batch_execute(FILL).await.is_err() {
            let row = client.query_one(USAGE, &[]).await;
            return row.expect("it can be read").get(0);
        }
    }
}

/// Only since PostgreSQL 17, where the size of the notification queue can be set; before, it is 8
/// GB.
#[tokio::test(flavor = "multi_thread")]
async fn writers_succeed_with_a_full_notification_queue_and_statuses_follow() {
    if !server_since(17, "max_notify_queue_pages").await {
        return;
    }
    let options = Options::default().set("max_notify_queue_pages", "64");
    let server = Postgres::start(options).await.expect("a server of our own");
    let database = Database::on(&server).await;
    let (writer, sleeper) = (database.writer().await, database.client().await);
    let daemon = Launch::on(&database).start().await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let id = writer.insert_run("F", Some(now / 1000)).await;
    run(&sleeper, "listen elsewhere").await;
    run(&sleeper, "begin; select 1").await;
    let usage = fill(writer.client()).await;
    println!("filled to {usage}");
    assert!(usage > 0.9, "filled to {usage}");

    for _ in 0..3 {
        write_everything(&writer, id).await;
    }
    eventually_status(&writer, "F", id, "completed").await;
    eventually_no_drift(writer.client()).await;
    assert!(
        daemon
            .metric("status_indexer_notify_queue_usage_ratio")
            .await
            > Some(0.9)
    );
    run(&sleeper, "commit").await;
    eventually(TIMEOUT, "the queue empties", async || {
        fill_level(&writer).await < 0.1
    })
    .await;
    server.stop().await.expect("it stops");
}

async fn fill_level(writer: &Writer) -> f64 {
    let row = writer
        .client()
        .query_one("select pg_notification_queue_usage()", &[])
        .await;
    row.expect("it can be read").get(0)
}
