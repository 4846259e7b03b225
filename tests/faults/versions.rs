//! An older daemon beside a newer schema, and the reverse, as during an upgrade.

use std::time::Duration;

use super::{command, leads, run};
use testkit::daemon::{Daemon, Launch};
use testkit::database::Database;
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::wait::eventually;
use testkit::writer::Writer;

const TIMEOUT: Duration = Duration::from_secs(30);

/// What a newer binary's migration may do: tables get columns, a function another body, and a step is
/// recorded.
const NEWER: &str = "
alter table status_indexer.state add column future text not null default 'x';
alter table status_indexer.queue add column future text;
alter table status_indexer.timers add column future text;
create or replace function status_indexer.status(reason text) returns text
language sql immutable parallel safe as $$
  select case reason
           when 'retrying' then 'running' when 'heartbeat' then 'running'
           when 'end_succeeded' then 'completed' else 'failed'
         end
$$;
insert into status_indexer.schema_history (version, name) values (999, 'future');
";

async fn complete_a_run(writer: &Writer) {
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let id = writer.insert_run("F", Some(now / 1000)).await;
    writer.attempt_ok("F", id, "True", now).await;
    eventually_status(writer, "F", id, "completed").await;
}

/// Starts a daemon that must not work: it waits, and reports this reason.
async fn waits(database: &Database, reason: &str) {
    let daemon = Launch::on(database)
        .args(&["run", "--metrics-listen", "127.0.0.1:0"])
        .spawn();
    eventually(
        TIMEOUT,
        reason,
        async || matches!(daemon.get("/readyz").await, Some((503, body)) if body.contains(reason)),
    )
    .await;
    assert!(!leads(&daemon).await);
    assert!(daemon.terminate().await.success());
}

async fn start(database: &Database) -> Daemon {
    Launch::on(database)
        .args(&["run", "--metrics-listen", "127.0.0.1:0"])
        .start()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_daemon_works_beside_a_newer_schema_until_it_is_replaced() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    command(&database, "migrate").await;
    let older = start(&database).await;
    eventually(TIMEOUT, "it leads", async || leads(&older).await).await;
    run(writer.client(), NEWER).await;
    complete_a_run(&writer).await;
    // Restarted, it works too, and it does not migrate backwards.
    let restarted = start(&database).await;
    assert!(older.terminate().await.success());
    complete_a_run(&writer).await;
    assert!(restarted.terminate().await.success());
    let with_migrate = Launch::on(&database)
        .args(&["run", "--migrate", "--metrics-listen", "127.0.0.1:0"])
        .start()
        .await;
    complete_a_run(&writer).await;
    let log = format!("{:?}", with_migrate.log());
    assert!(log.contains("not migrated"), "{log}");
    assert!(with_migrate.terminate().await.success());
    eventually_no_drift(writer.client()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_another_version_of_the_definition_a_daemon_waits_and_reports_the_remedy() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    command(&database, "migrate").await;
    let older = start(&database).await;
    eventually(TIMEOUT, "it leads", async || leads(&older).await).await;
    for version in [2, 0] {
        run(
            writer.client(),
            &format!("update status_indexer.state set definition_version = {version}"),
        )
        .await;
        waits(&database, "use the binary that migrated it").await;
        // The one that runs evaluates by the functions of the database, so it goes on.
        complete_a_run(&writer).await;
        assert!(leads(&older).await);
    }
    run(
        writer.client(),
        "update status_indexer.state set definition_version = 1",
    )
    .await;
    eventually_no_drift(writer.client()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_daemon_beside_an_older_schema_names_the_command_to_run() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    command(&database, "migrate").await;
    // A function with the parameters of an older version.
    run(
        writer.client(),
        "drop function status_indexer.drain(bigint, integer, integer, bigint[], boolean);
         alter table status_indexer.state rename column runs_table to runs;",
    )
    .await;
    waits(&database, "migrate up").await;
}
