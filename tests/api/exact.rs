//! Exact answers: no client sees a status that is older than its own write, whatever the indexer does.

use std::time::Duration;

use status_indexer::pg::SessionMode;
use tokio_postgres::Client;

use super::server::{Answer, ApiServer, LIMITS, connector, plain, read};
use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::drift::SOON;
use testkit::postgres::{Options, Postgres};
use testkit::standby::Standby;
use testkit::wait::eventually;

/// What `server.rs` has set up for tests of the column is undone: triggers fire, deadlines pass.
const TRIGGERS_FIRE: &str = "\
alter table runs_v3 enable trigger status_indexer_insert;
alter table runs_v3 enable trigger status_indexer_heartbeat;
update status_indexer.state set deadlines_from = null, deadlines_until = null;
insert into flows_v3 (flow_id, ts_epoch) values ('F', 1);";

/// An API on a database where nothing applies events.
async fn server() -> ApiServer {
    let server = ApiServer::new().await;
    server.sql(TRIGGERS_FIRE).await;
    server
}

/// A run whose heartbeat is this old.
async fn insert_run(client: &Client, age_secs: i64) -> String {
    const INSERT: &str = "\
insert into runs_v3 (flow_id, user_name, ts_epoch, tags, system_tags, last_heartbeat_ts)
values ('F', 'u', (extract(epoch from clock_timestamp()) * 1000)::bigint, '[]', '[]',
        extract(epoch from clock_timestamp())::bigint - $1::bigint)
returning run_number";
    let row = client.query_one(INSERT, &[&age_secs]).await;
    row.expect("a run can be written")
        .get::<_, i32>(0)
        .to_string()
}

async fn end(client: &Client, run: &str, field: &str, value: &str) {
    const INSERT: &str = "\
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
values ('F', $1, 'end', 1, $2, $3, $2, (extract(epoch from clock_timestamp()) * 1000)::bigint)";
    let run: i64 = run.parse().expect("a number");
    client
        .execute(INSERT, &[&run, &field, &value])
        .await
        .expect("metadata can be written");
}

/// The status of a run by the listings, of which exactly one has it, and by its own page.
async fn status(server: &ApiServer, run: &str) -> String {
    let mut found = Vec::new();
    for status in ["running", "completed", "failed"] {
        let page = server.runs(&[("status", status), ("_limit", "500")]).await;
        assert_eq!(page.code, 200, "{}", page.text);
        if page.numbers().iter().any(|number| number == run) {
            found.push(status);
        }
    }
    let all = server
        .runs(&[("status", "running,completed,failed"), ("_limit", "500")])
        .await;
    let times = all.numbers().iter().filter(|number| *number == run).count();
    assert_eq!((found.len(), times), (1, 1), "{run}: {found:?}");
    let explained = server.get(&format!("/flows/F/runs/{run}/status")).await;
    assert_eq!(explained.json()["status"], found[0]);
    found[0].to_owned()
}

#[tokio::test]
async fn answers_are_exact_although_nothing_applies_events() {
    let server = server().await;
    let client = &server.client;
    let run = insert_run(client, 0).await;
    assert_eq!(status(&server, &run).await, "running");
    end(client, &run, "attempt_ok", "False").await;
    assert_eq!(status(&server, &run).await, "failed");
    end(client, &run, "attempt", "1").await;
    assert_eq!(status(&server, &run).await, "running");
    end(client, &run, "attempt_ok", "True").await;
    assert_eq!(status(&server, &run).await, "completed");
    let lost = insert_run(client, 1000).await;
    assert_eq!(status(&server, &lost).await, "failed");
    let stored = "select count(*) from runs_v3 where run_status <> 'running'";
    let row = client.query_one(stored, &[]).await.expect("the runs");
    assert_eq!(row.get::<_, i64>(0), 0, "the column is untouched");
}

#[tokio::test]
async fn a_deadline_passes_at_its_moment_although_nothing_sweeps() {
    let server = server().await;
    let client = &server.client;
    let run = insert_run(client, 358).await;
    server.sql("delete from status_indexer.queue").await;
    let later = Duration::from_secs(20);
    eventually(later, "the deadline passes", async || {
        let page = server.runs(&[("status", "failed")]).await;
        page.numbers() == [run.clone()]
    })
    .await;
    assert_eq!(status(&server, &run).await, "failed");
    let row = client
        .query_one(
            "select (extract(epoch from clock_timestamp()) - last_heartbeat_ts)::float8, run_status from runs_v3",
            &[],
        )
        .await
        .expect("the run");
    let age: f64 = row.get(0);
    assert!(age > 360.0, "{age}");
    assert_eq!(row.get::<_, &str>(1), "running", "the column is untouched");
    // A heartbeat that comes back.
    server
        .sql("update runs_v3 set last_heartbeat_ts = extract(epoch from clock_timestamp())")
        .await;
    assert_eq!(status(&server, &run).await, "running");
}

#[tokio::test]
async fn pages_merge_pending_runs_at_their_places() {
    let server = server().await;
    // The runs with even numbers have events in the queue, and complete by these.
    server
        .sql(
            "set session_replication_role = replica;
             insert into runs_v3 (flow_id, run_number, ts_epoch, tags, system_tags, run_status)
             select 'F', i, i / 3, '[]', '[]', case i % 4 when 1 then 'completed' else 'failed' end
               from generate_series(1, 60) i;
             reset session_replication_role;
             insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
             select 'F', i, 'end', 1, 'attempt_ok', 'True', '', 1 from generate_series(2, 60, 2) i",
        )
        .await;
    for statuses in ["completed", "failed", "completed,failed", "running,failed"] {
        let expected: Vec<String> = (1..=60)
            .rev()
            .filter(|i| match statuses {
                "completed" => i % 4 != 3,
                "completed,failed" => true,
                _ => i % 4 == 3,
            })
            .map(|i: i32| i.to_string())
            .collect();
        let mut seen = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut params = vec![("status", statuses), ("_limit", "7")];
            if let Some(cursor) = &cursor {
                params.push(("_cursor", cursor));
            }
            let page = server.runs(&params).await;
            seen.extend(page.numbers());
            cursor = page.header("x-next-cursor").map(str::to_owned);
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, expected, "{statuses}");
        let page = server
            .runs(&[("status", statuses), ("_limit", "5"), ("_offset", "9")])
            .await;
        let expected: Vec<String> = expected.iter().skip(9).take(5).cloned().collect();
        assert_eq!(page.numbers(), expected, "{statuses}");
    }
}

#[tokio::test]
async fn a_client_sees_its_own_write_at_once_whatever_the_daemon_does() {
    let database = Database::fresh().await;
    let daemon = Launch::on(&database).start().await;
    let api = daemon.api().await;
    let client = database.client().await;
    database.writer().await.insert_flow("F").await;
    for round in 0..150 {
        let run = insert_run(&client, 0).await;
        let (value, wanted) = [("True", "completed"), ("False", "failed")][round % 2];
        end(&client, &run, "attempt_ok", value).await;
        let url = format!("http://{api}/flows/F/runs?status={wanted}&_limit=1");
        let page = read(plain().get(url).send().await.expect("an answer")).await;
        assert_eq!(page.numbers(), [run], "round {round}");
    }
}

#[tokio::test]
async fn while_the_column_is_invalid_a_site_may_choose_slow_answers() {
    let server = server().await;
    let run = insert_run(&server.client, 0).await;
    server
        .sql("update runs_v3 set run_status = 'failed'; delete from status_indexer.queue; select status_indexer.invalidate()")
        .await;
    let refused = server.runs(&[("status", "running")]).await;
    assert_eq!(refused.code, 503);
    let view = "select run_number::text, status from status_indexer.runs where status = 'running'";
    let error = server.client.query(view, &[]).await.expect_err("invalid");
    let error = error.as_db_error().expect("from the server").clone();
    assert_eq!(error.code().code(), "55000");
    assert!(
        error.message().contains("run_status is not valid"),
        "{error:?}"
    );

    let name = server.database.name();
    server
        .sql(&format!(
            "alter database {name} set status_indexer.evaluate_while_invalid = on"
        ))
        .await;
    let config = server.database.config();
    let client = testkit::database::connect(&config).await;
    let row = client.query_one(view, &[]).await.expect("it is evaluated");
    assert_eq!(row.get::<_, &str>(0), run);
    let sessions_since = server.beside(connector(&config)).await;
    let page = sessions_since.runs(&[("status", "running")]).await;
    assert_eq!(page.numbers(), [run]);
}

#[tokio::test]
async fn a_replica_answers_for_its_snapshot_and_says_how_old_that_is() {
    let primary = Postgres::start(Options::default()).await;
    let primary = primary.expect("a server of our own");
    let database = Database::on(&primary).await;
    let config = database.config();
    let server = ApiServer::on(database, config, LIMITS, SessionMode::Session).await;
    server.sql(TRIGGERS_FIRE).await;
    let client = &server.client;
    let Some(standby) = Standby::of(&primary).await else {
        return;
    };
    let name = server.database.name();
    let replica = server
        .beside(connector(&standby.config(name)).replica())
        .await;
    let done = insert_run(client, 0).await;
    end(client, &done, "attempt_ok", "True").await;
    let lost = insert_run(client, 358).await;
    standby.catches_up(client).await;
    assert_eq!(status(&replica, &done).await, "completed");
    let page = server.runs(&[("status", "running")]).await;
    assert_eq!(page.header("x-replica-age"), None, "a primary");

    // What the replica has not received has not happened for it: neither heartbeats nor deadlines.
    let replay = standby.client(name).await;
    run(&replay, "select pg_wal_replay_pause()").await;
    server
        .sql("update runs_v3 set last_heartbeat_ts = last_heartbeat_ts + 350")
        .await;
    eventually(SOON, "the pause is longer than the deadline", async || {
        let page = replica.runs(&[("status", "running")]).await;
        assert_eq!(page.numbers(), std::slice::from_ref(&lost));
        age(&page) > 3.0
    })
    .await;
    assert_eq!(status(&replica, &lost).await, "running");
    let explained = replica.get(&format!("/flows/F/runs/{lost}/status")).await;
    assert!(age(&explained) > 3.0);
    run(&replay, "select pg_wal_replay_resume()").await;
    standby.catches_up(client).await;
    let page = replica.runs(&[("status", "running")]).await;
    assert_eq!(page.numbers(), [lost]);
    standby.stop().await;
}

/// How old an answer is by its own account, seconds.
fn age(answer: &Answer) -> f64 {
    let header = answer.header("x-replica-age").expect("it is a replica");
    header.parse().expect("a number")
}

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.expect("valid SQL");
}
