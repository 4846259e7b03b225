//! The migrator: installing, upgrading, inspecting and removing the database objects.
//!
//! Promises that each migration leaves all or nothing of a step, whatever happens to it, and that
//! `down` leaves the database as it was before `up`.

mod bulk;
mod concurrency;
mod down;
mod dumps;
mod interruptions;
mod least_privilege;
mod names;
mod ownership;
mod privileges;
mod publications;
mod refusals;
mod tables;
mod ui;
mod up;
mod upstream_changes;

use std::process::Output;
use std::time::Duration;

use testkit::daemon::Launch;
use testkit::database::{Database, connect, shared};
use testkit::requirement::left_out;
use tokio_postgres::Client;

const SOON: Duration = Duration::from_secs(20);

/// Steps in the migration history, including that of the schema.
const STEPS: i64 = 17;

async fn migrate(database: &Database, args: &[&str]) -> Output {
    migrate_as(database.url(), database, args, &[]).await
}

async fn migrate_as(url: &str, database: &Database, args: &[&str], env: &[(&str, &str)]) -> Output {
    let args: Vec<&str> = ["migrate"].iter().chain(args).copied().collect();
    let mut launch = Launch::on(database).args(&args).env("DATABASE_URL", url);
    for (name, value) in env {
        launch = launch.env(name, value);
    }
    launch.output().await
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

/// The text of a refusal.
#[track_caller]
fn refused(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{}", text(output));
    text(output)
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).replace("\\\"", "\"")
}

/// Runs `pg_dump`. None where this machine has none for the server's version, which is reported.
async fn pg_dump(args: &[&str]) -> Option<Output> {
    let program = shared()
        .await
        .client_program("pg_dump")
        .inspect_err(|reason| left_out(reason))
        .ok()?;
    let output = tokio::process::Command::new(program)
        .args(args)
        .output()
        .await
        .expect("it has printed its version");
    Some(output)
}

/// A dump of the schema, with owners and privileges. Without a suitable `pg_dump` on this machine
/// there is none, and the comparison is reported as left out.
async fn dump(database: &Database) -> Option<String> {
    let output = pg_dump(&["--schema-only", "--dbname", database.url()]).await?;
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("the database is UTF-8");
    // Newer versions of pg_dump put a random key around the dump.
    let kept = text
        .lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    Some(kept.collect::<Vec<_>>().join("\n"))
}

/// Compares two dumps; without a program to make them there is nothing to compare.
#[track_caller]
fn same(before: &Option<String>, after: &Option<String>) {
    let (Some(before), Some(after)) = (before, after) else {
        return;
    };
    if before != after {
        let new: Vec<&str> = after
            .lines()
            .filter(|line| !before.contains(*line))
            .collect();
        let gone: Vec<&str> = before
            .lines()
            .filter(|line| !after.contains(*line))
            .collect();
        panic!("the schema has changed:\nnew {new:#?}\ngone {gone:#?}");
    }
}

async fn execute(client: &Client, sql: &str) {
    let outcome = client.batch_execute(sql).await;
    outcome.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

async fn number(client: &Client, sql: &str) -> i64 {
    client
        .query_one(sql, &[])
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
        .get(0)
}

/// A login role of this database's test.
async fn role(database: &Database, name: &str) -> String {
    let role = format!("{name}_{}", database.name());
    let client = database.client().await;
    execute(&client, &format!("create role {role} login")).await;
    role
}

/// A connection of a role.
async fn client_of(database: &Database, role: &str) -> Client {
    let mut config = database.config();
    config.user(role);
    connect(&config).await
}

fn url_of(database: &Database, role: &str) -> String {
    database.url().replace("postgres@", &format!("{role}@"))
}

/// The metadata service's own role: it owns the tables and may create more.
async fn owner(database: &Database) -> String {
    let role = role(database, "app").await;
    let client = database.client().await;
    for table in ["flows", "runs", "steps", "tasks", "metadata", "artifact"] {
        execute(&client, &format!("alter table {table}_v3 owner to {role}")).await;
    }
    execute(
        &client,
        &format!("grant usage, create on schema public to {role}"),
    )
    .await;
    role
}

async fn fill(client: &Client, runs: u32) {
    execute(
        client,
        &format!(
            "insert into flows_v3 (flow_id, ts_epoch) values ('Old', 0);
             insert into runs_v3 (flow_id, ts_epoch) select 'Old', n from generate_series(1, {runs}) n"
        ),
    )
    .await;
}

/// Checks that the indexer works: evidence fires a trigger, and `drain` writes the status.
async fn check_works(client: &Client, runs: &str, metadata: &str) {
    execute(
        client,
        &format!(
            "insert into flows_v3 (flow_id, ts_epoch) values ('Works', 0) on conflict do nothing;
             delete from {runs} where flow_id = 'Works';
             delete from {metadata} where flow_id = 'Works';
             insert into {runs} (flow_id, run_number, ts_epoch) values ('Works', 1, 0);
             insert into {metadata} (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
             values ('Works', 1, 'end', 1, 'attempt_ok', 'True', 'x', 1)"
        ),
    )
    .await;
    execute(client, "select status_indexer.drain(0, 1000000, null)").await;
    let status: String = client
        .query_one(
            &format!("select run_status from {runs} where flow_id = 'Works'"),
            &[],
        )
        .await
        .expect("the column is there")
        .get(0);
    assert_eq!(status, "completed");
}

/// Checks that everything is installed, and works.
async fn check_complete(database: &Database) {
    succeeded(&migrate(database, &["status"]).await);
    let client = database.client().await;
    let steps = "select count(*) from status_indexer.schema_history";
    assert_eq!(number(&client, steps).await, STEPS);
    check_works(&client, "runs_v3", "metadata_v3").await;
}
