//! Many runs that cannot be written at present: locked by another transaction, or refused by the
//! server. No other run waits for them.

use tokio_postgres::Client;

use super::run;
use testkit::daemon::{Daemon, Launch};
use testkit::database::Database;
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::postgres::{Options, Postgres};
use testkit::wait::{eventually, eventually_eq};
use testkit::writer::Writer;

const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(180);

/// A neighbour's trigger, which refuses to change the runs of one flow, some of them with the code of a
/// missing privilege.
const REFUSE: &str = "\
create function refuse() returns trigger language plpgsql as $$
begin
  if new.flow_id = 'Refused' and new.run_number % 2 = 0 then
    raise exception using errcode = 'insufficient_privilege', message = 'runs of this flow are closed';
  elsif new.flow_id = 'Refused' then
    raise exception 'runs of this flow are closed';
  end if;
  return new;
end
$$;
create trigger refuse before update on runs_v3 for each row execute function refuse()";

const REFUSED: &str = "status_indexer_rows_refused_total";

/// A flow with as many runs, whose heartbeat is recent.
async fn flow_of(client: &Client, flow: &str, count: i32) {
    run(
        client,
        &format!(
            "insert into flows_v3 (flow_id, ts_epoch) values ('{flow}', 1);
             insert into runs_v3 (flow_id, user_name, ts_epoch, last_heartbeat_ts)
             select '{flow}', 'u', i, extract(epoch from clock_timestamp())::bigint
               from generate_series(1, {count}) i"
        ),
    )
    .await;
}

/// The end step of all runs of a flow succeeds (`True`) or fails (`False`).
async fn end_all(client: &Client, flow: &str, value: &str) {
    run(
        client,
        &format!(
            "insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type,
                                      ts_epoch)
             select flow_id, run_number, 'end', 1, 'attempt_ok', '{value}', 'attempt_ok', 1
               from runs_v3
              where flow_id = '{flow}'"
        ),
    )
    .await;
}

async fn count(client: &Client, flow: &str, status: &str) -> i64 {
    const COUNT: &str = "select count(*) from runs_v3 where flow_id = $1 and run_status = $2";
    let row = client.query_one(COUNT, &[&flow, &status]).await;
    row.expect("the column exists").get(0)
}

/// A new run whose end step succeeds becomes completed.
async fn completes_another_run(writer: &Writer) {
    let now = writer.now_ms().await;
    let id = writer.insert_run("Free", Some(now / 1000)).await;
    writer.attempt_ok("Free", id, "True", now).await;
    eventually_status(writer, "Free", id, "completed").await;
}

async fn attempted(daemon: &Daemon, metric: &str, at_least: u32) {
    eventually(TIMEOUT, metric, async || {
        daemon.metric(metric).await >= Some(at_least.into())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_locked_runs_delay_no_other_run() {
    const LOCKED: i32 = 20_000;
    let database = Database::fresh().await;
    let (writer, holder) = (database.writer().await, database.client().await);
    let daemon = Launch::on(&database).start().await;
    writer.insert_flow("Free").await;
    flow_of(writer.client(), "Locked", LOCKED).await;
    run(
        &holder,
        "begin; update runs_v3 set user_name = user_name where flow_id = 'Locked'",
    )
    .await;
    end_all(writer.client(), "Locked", "True").await;
    completes_another_run(&writer).await;
    // Also after all of them have been tried.
    attempted(&daemon, "status_indexer_rows_locked_total", 20_000).await;
    for _ in 0..20 {
        completes_another_run(&writer).await;
    }
    assert_eq!(count(writer.client(), "Locked", "completed").await, 0);
    run(&holder, "commit").await;
    eventually_eq(
        TIMEOUT,
        "the runs are completed",
        LOCKED.into(),
        async || count(writer.client(), "Locked", "completed").await,
    )
    .await;
    eventually_no_drift(writer.client()).await;
    assert!(daemon.terminate().await.success());
}

/// Refused runs are logged, with the server's message and at a limited rate.
async fn check_log(daemon: &Daemon) {
    let line = daemon
        .logged("a refused run is logged", |line| {
            line["sqlstate"] == "P0001" && line["run.flow_id"] == "Refused"
        })
        .await;
    assert_eq!(line["error"], "runs of this flow are closed");
    let lines = daemon
        .log()
        .iter()
        .filter(|line| line["sqlstate"] == "P0001")
        .count();
    assert!(lines <= 50, "{lines} lines");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_runs_delay_neither_events_nor_deadlines_nor_repairs() {
    const RUNS: i32 = 250;
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let client = writer.client();
    let daemon = Launch::on(&database).start().await;
    for flow in ["Refused", "Free"] {
        flow_of(client, flow, RUNS).await;
    }
    run(client, REFUSE).await;

    // Events.
    end_all(client, "Refused", "True").await;
    end_all(client, "Free", "True").await;
    eventually_eq(
        TIMEOUT,
        "the free runs are completed",
        RUNS.into(),
        async || count(client, "Free", "completed").await,
    )
    .await;
    attempted(&daemon, REFUSED, 250).await;
    completes_another_run(&writer).await;
    assert_eq!(count(client, "Refused", "completed").await, 0);

    // Deadlines: heartbeats that were lost long ago, in an order in which the refused runs come first.
    run(
        client,
        "delete from metadata_v3;
         alter table runs_v3 disable trigger refuse;
         update runs_v3 set run_status = 'running', last_heartbeat_ts = 1;
         alter table runs_v3 enable trigger refuse",
    )
    .await;
    eventually_eq(TIMEOUT, "the free runs fail", 0, async || {
        count(client, "Free", "running").await + count(client, "Free", "completed").await
    })
    .await;

    check_log(&daemon).await;
    assert!(daemon.terminate().await.success());

    // Repairs. A new daemon begins with a pass, while the pause after one depends on the machine's speed.
    run(
        client,
        "alter table runs_v3 disable trigger refuse;
         alter table runs_v3 disable trigger status_indexer_heartbeat;
         update runs_v3 set run_status = 'completed';
         alter table runs_v3 enable trigger refuse;
         alter table runs_v3 enable trigger status_indexer_heartbeat",
    )
    .await;
    let daemon = Launch::on(&database).spawn();
    eventually_eq(TIMEOUT, "the free runs are repaired", 0, async || {
        count(client, "Free", "completed").await
    })
    .await;
    assert_eq!(count(client, "Refused", "completed").await, i64::from(RUNS));
    check_log(&daemon).await;

    run(client, "drop trigger refuse on runs_v3").await;
    eventually_no_drift(client).await;
    assert!(daemon.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_corrects_the_other_runs_and_waits_for_the_refused_ones() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let client = writer.client();
    for flow in ["Free", "Refused"] {
        flow_of(client, flow, 300).await;
        end_all(client, flow, "False").await;
    }
    super::migrate(&database).await;
    run(client, REFUSE).await;
    let daemon = Launch::on(&database).spawn();
    eventually_eq(TIMEOUT, "the free runs fail", 300, async || {
        count(client, "Free", "failed").await
    })
    .await;
    daemon
        .logged("the backfill waits", |line| {
            let text = line["message"].as_str();
            text.is_some_and(|text| text.starts_with("the backfill waits for runs"))
        })
        .await;
    assert_eq!(daemon.metric("status_indexer_valid").await, Some(0.0));
    run(client, "drop trigger refuse on runs_v3").await;
    daemon.ready().await;
    assert_eq!(count(client, "Refused", "failed").await, 300);
    eventually_no_drift(client).await;
    assert!(daemon.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_for_deleted_runs() {
    const KEPT: &str = "\
select (select count(*) from status_indexer.queue) + (select count(*) from status_indexer.timers)";
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let client = writer.client();
    let daemon = Launch::on(&database)
        .env("RUN_INACTIVE_CUTOFF_TIME", "5")
        .start()
        .await;
    writer.insert_flow("F").await;
    let now = writer.now_secs().await;
    // A heartbeat ahead of the clock, which comes into range after some seconds.
    let ahead = writer.insert_run("F", Some(now + 15)).await;
    eventually_status(&writer, "F", ahead, "failed").await;
    let kept = async || {
        let row = client.query_one(KEPT, &[]).await;
        row.expect("the tables exist").get::<_, i64>(0)
    };
    assert_eq!(kept().await, 1, "the run has a timer");
    // Events in the transaction that deletes the run.
    run(
        client,
        &format!(
            "begin;
             insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
             values ('F', {ahead}, 'end', 1, 'attempt_ok', 'True', 't', 1);
             delete from metadata_v3;
             delete from runs_v3;
             commit"
        ),
    )
    .await;
    eventually_eq(TIMEOUT, "nothing is kept", 0, kept).await;
    assert!(daemon.terminate().await.success());
}

/// Damages the table of long metadata values, as a faulty disk would: their rows can still be found, and
/// their values cannot be read.
async fn damage_long_values(server: &Postgres, client: &Client) {
    const FILE: &str = "\
select current_setting('data_directory') || '/' || pg_relation_filepath(reltoastrelid)
  from pg_class
 where oid = 'metadata_v3'::regclass";
    let row = client.query_one(FILE, &[]).await.expect("the catalog");
    let file: String = row.get(0);
    run(client, "checkpoint").await;
    server.kill9().await.expect("the server can be killed");
    let size = std::fs::metadata(&file).expect("the file is there").len();
    assert!(size > 0);
    let zeros = vec![0; usize::try_from(size).expect("a small file")];
    std::fs::write(&file, zeros).expect("the file is ours");
    server.start_again().await.expect("it starts again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_with_a_damaged_row_delays_no_other_and_is_reported() {
    let server = Postgres::start(Options::default()).await;
    let server = server.expect("a server of our own");
    let database = Database::on(&server).await;
    let writer = database.writer().await;
    for flow in ["Damaged", "Free"] {
        writer.insert_flow(flow).await;
    }
    let daemon = Launch::on(&database).start().await;
    let now = writer.now_ms().await;
    let lost = writer
        .insert_run("Damaged", Some(now / 1000 - 10_000))
        .await;
    let id = writer.insert_run("Damaged", Some(now / 1000)).await;
    let stored_apart = "alter table metadata_v3 alter value set storage external";
    run(writer.client(), stored_apart).await;
    let value = "x".repeat(9000);
    writer.attempt_ok("Damaged", id, &value, now).await;
    eventually_no_drift(writer.client()).await;
    daemon.kill9().await;
    damage_long_values(&server, writer.client()).await;

    let writer = database.writer().await;
    let unreadable = "select count(*) from metadata_v3 where value like '%x%'";
    let error = writer.client().query(unreadable, &[]).await;
    let error = error.expect_err("the value is damaged");
    assert!(error.to_string().contains("db error"), "{error}");
    // A whole scan, events of the damaged run and of others, and reads.
    run(writer.client(), "select status_indexer.invalidate()").await;
    let daemon = Launch::on(&database).start().await;
    writer.attempt("Damaged", id, now + 1).await;
    writer.attempt_ok("Damaged", lost, "True", now).await;
    eventually_status(&writer, "Damaged", lost, "completed").await;
    completes_another_run(&writer).await;
    attempted(&daemon, REFUSED, 2).await;
    daemon.ready().await;
    let page = format!(
        "http://{}/flows/Damaged/runs?status=running,completed,failed",
        daemon.api().await
    );
    let page: serde_json::Value = reqwest::get(page)
        .await
        .expect("the API answers")
        .json()
        .await
        .expect("a list");
    assert_eq!(page.as_array().map(Vec::len), Some(2), "{page}");

    let verified = Launch::on(&database).args(&["verify"]).output().await;
    assert_eq!(verified.status.code(), Some(2));
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(
        text.contains(&format!("Damaged/{id}: the server cannot evaluate it")),
        "{text}"
    );
    assert!(text.contains("0 with drift"), "{text}");
    daemon.terminate().await;
    server.stop().await.expect("it stops");
}
