//! A daemon that cannot start yet: it waits, reports for what, and starts when the cause is gone.
//!
//! In each test it keeps running and answers its probes. As a sidecar, a daemon that exits would make
//! the pod of the metadata service unready.

use std::time::Duration;

use serde_json::Value;

use super::{command, migrate, run};
use crate::connect::server::Certificates;
use testkit::daemon::{Daemon, Launch};
use testkit::database::{Database, UPSTREAM};
use testkit::drift::eventually_status;
use testkit::postgres::{Options, Postgres};
use testkit::standby::Standby;
use testkit::wait::{eventually, eventually_eq};

const TIMEOUT: Duration = Duration::from_secs(20);

const NOT_STARTED: &str = "status_indexer_unhealthy{condition=\"not_started\"}";

/// A daemon that does not migrate.
fn without_migration(database: &Database) -> Launch {
    Launch::on(database).args(&["run", "--metrics-listen", "127.0.0.1:0"])
}

/// The reasons at `/readyz`, whatever the code is.
async fn missing(daemon: &Daemon) -> String {
    let answer = daemon.get("/readyz").await;
    let body = answer.map(|(_, body)| body).unwrap_or_default();
    let body: Value = serde_json::from_str(&body).unwrap_or_default();
    body["missing"].to_string()
}

/// Waits until the daemon reports the reason at each of its endpoints and in its log.
async fn reports(daemon: &Daemon, reason: &str, database_answers: bool) {
    eventually(TIMEOUT, &format!("/readyz: {reason}"), async || {
        missing(daemon).await.contains(reason)
    })
    .await;
    daemon
        .logged(reason, |line| {
            line["error"]
                .as_str()
                .is_some_and(|text| text.contains(reason))
        })
        .await;
    let code = daemon.get("/readyz").await.map(|(code, _)| code);
    assert_eq!(code, Some(503));
    assert_eq!(daemon.metric(NOT_STARTED).await, Some(1.0));
    let up = if database_answers { 1.0 } else { 0.0 };
    assert_eq!(daemon.metric("status_indexer_up").await, Some(up));
    assert_eq!(daemon.metric("status_indexer_valid").await, Some(0.0));
    assert!(matches!(daemon.get("/healthz").await, Some((200, _))));
}

/// Waits until the daemon works, and checks that nothing of the wait is left.
async fn works(daemon: &Daemon, database: &Database) {
    daemon.ready().await;
    assert_eq!(daemon.metric(NOT_STARTED).await, Some(0.0));
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let id = writer.insert_run("F", Some(now / 1000)).await;
    writer.attempt_ok("F", id, "True", now).await;
    eventually_status(&writer, "F", id, "completed").await;
    assert!(daemon.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_waits_for_the_tables_of_the_metadata_service() {
    let database = Database::empty().await;
    let daemon = Launch::on(&database).spawn();
    reports(&daemon, "the table runs_v3 does not exist", true).await;
    run(&database.client().await, UPSTREAM).await;
    works(&daemon, &database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_waits_for_migrate_up() {
    let database = Database::fresh().await;
    let daemon = without_migration(&database).spawn();
    reports(&daemon, "run `status-indexer migrate up`", true).await;
    migrate(&database).await;
    works(&daemon, &database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_waits_for_its_grants() {
    let database = Database::fresh().await;
    let role = format!("indexer_{}", database.name());
    run(
        &database.client().await,
        &format!("create role {role} login"),
    )
    .await;
    migrate(&database).await;
    let url = database.url().replace("postgres@", &format!("{role}@"));
    let daemon = without_migration(&database)
        .env("DATABASE_URL", &url)
        .spawn();
    reports(&daemon, "migrate up --grant-to ROLE", true).await;
    command(&database, &format!("migrate up --grant-to {role}")).await;
    works(&daemon, &database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_waits_for_an_operator_without_an_end() {
    let database = Database::fresh().await;
    let role = format!("app_{}", database.name());
    let client = database.client().await;
    run(&client, &format!("create role {role} login")).await;
    let url = database.url().replace("postgres@", &format!("{role}@"));
    // With --migrate, which only the owner of the tables can do.
    let daemon = Launch::on(&database).env("DATABASE_URL", &url).spawn();
    reports(&daemon, "does not own", true).await;
    run(&client, &format!("alter role {role} superuser")).await;
    works(&daemon, &database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_waits_for_a_newer_binary_or_an_older_database() {
    let database = Database::fresh().await;
    migrate(&database).await;
    let client = database.client().await;
    let set = "update status_indexer.state set definition_version = definition_version";
    run(&client, &format!("{set} + 1")).await;
    let daemon = without_migration(&database).spawn();
    reports(&daemon, "use the binary that migrated it", true).await;
    run(&client, &format!("{set} - 1")).await;
    works(&daemon, &database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_waits_for_a_server_that_is_down() {
    let server = Postgres::start(Options::default())
        .await
        .expect("a server of our own");
    let database = Database::on(&server).await;
    server.kill9().await.expect("it can be killed");
    let daemon = Launch::on(&database).spawn();
    reports(&daemon, "refused", false).await;
    server.start_again().await.expect("it starts");
    works(&daemon, &database).await;
    server.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_waits_for_the_end_of_recovery() {
    let server = Postgres::start(Options::default())
        .await
        .expect("a server of our own");
    let database = Database::on(&server).await;
    let Some(standby) = Standby::of(&server).await else {
        return;
    };
    let url = standby.url(database.name());
    let daemon = Launch::on(&database).env("DATABASE_URL", &url).spawn();
    reports(&daemon, "the server is in recovery", false).await;
    let promoted = standby.client("postgres").await;
    run(&promoted, "select pg_promote()").await;
    daemon.ready().await;
    assert_eq!(daemon.metric(NOT_STARTED).await, Some(0.0));
    assert!(daemon.terminate().await.success());
    standby.stop().await;
    server.stop().await.expect("it stops");
}

/// An upgrade that is rolled back leaves a newer database. The older daemon works on it, also with
/// `--migrate`.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_migrates_starts_on_the_database_of_a_newer_binary() {
    let database = Database::fresh().await;
    migrate(&database).await;
    let newer = "insert into status_indexer.schema_history (version, name) values (9999, 'later')";
    run(&database.client().await, newer).await;
    let daemon = Launch::on(&database).spawn();
    daemon
        .logged("it does not migrate", |line| {
            line["message"] == "not migrated"
        })
        .await;
    works(&daemon, &database).await;
}

/// In a pod, the files are those of an optional Secret, which may be created later.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_waits_for_files_that_do_not_exist_yet() {
    let database = Database::fresh().await;
    let certificates = Certificates::new();
    let file = |name: &str| certificates.path(name).to_string_lossy().into_owned();
    let config = database.config();
    let daemon = Launch::on(&database)
        .env("DATABASE_URL", "")
        .env("MF_METADATA_DB_HOST", "127.0.0.1")
        .env("MF_METADATA_DB_PORT", &config.get_ports()[0].to_string())
        .env("MF_METADATA_DB_NAME", database.name())
        .env("MF_METADATA_DB_PSWD_FILE", &file("password"))
        .env("MF_METADATA_DB_SSL_MODE", "prefer")
        .env("MF_METADATA_DB_SSL_ROOT_CERT_PATH", &file("ca.crt"))
        .spawn();
    reports(&daemon, "cannot read trusted certificates", false).await;
    certificates
        .openssl(
            "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.crt -subj /CN=ca",
        )
        .await;
    reports(&daemon, "cannot read the password", false).await;
    std::fs::write(file("password"), "postgres\n").expect("it is ours");
    works(&daemon, &database).await;
}

/// A migration may take minutes: the endpoints must not report an unreachable database meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_in_progress_is_reported_as_such() {
    let database = Database::fresh().await;
    let mut holder = database.client().await;
    let lock = holder.transaction().await.expect("it is idle");
    lock.batch_execute("lock table runs_v3 in share mode")
        .await
        .expect("the table exists");
    let daemon = Launch::on(&database).spawn();
    let reason = "`migrate up` is in progress";
    eventually(TIMEOUT, reason, async || {
        missing(&daemon).await.contains(reason)
    })
    .await;
    eventually_eq(TIMEOUT, "up", Some(1.0), async || {
        daemon.metric("status_indexer_up").await
    })
    .await;
    assert!(!missing(&daemon).await.contains("does not answer"));
    lock.rollback().await.expect("the session lives");
    works(&daemon, &database).await;
}
