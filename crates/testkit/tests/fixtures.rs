//! The fixtures themselves: servers, databases and faults do what their documentation promises.
//!
//! A failure here explains failures elsewhere. Some tests start the product's binary, which
//! `cargo test --workspace` builds.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::postgres::{Options, Postgres};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;

use testkit::daemon::Launch;
use testkit::database::{Database, connect, shared};
use testkit::proxy::Proxy;
use testkit::wait::{eventually, eventually_eq, within};

const TIMEOUT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn fresh_databases_see_nothing_of_each_other() {
    let (one, other) = (Database::fresh().await, Database::fresh().await);
    let (writer, reader) = (one.writer().await, other.client().await);
    writer.insert_flow("Flow").await;
    writer.insert_run("Flow", None).await;
    let count = "select count(*) from runs_v3";
    let here: i64 = writer
        .client()
        .query_one(count, &[])
        .await
        .expect("the table is there")
        .get(0);
    let there: i64 = reader
        .query_one(count, &[])
        .await
        .expect("the table is there")
        .get(0);
    assert_eq!((here, there), (1, 0));
    assert_ne!(one.name(), other.name());
}

#[tokio::test]
async fn a_database_is_dropped_with_its_test() {
    let database = Database::fresh().await;
    let name = database.name().to_owned();
    let _held_open = database.client().await;
    drop(database);
    let admin = connect(&shared().await.config("postgres")).await;
    let left = admin
        .query_opt("select from pg_database where datname = $1", &[&name])
        .await;
    assert!(left.expect("the catalog can be read").is_none());
}

#[tokio::test]
async fn heartbeats_advance_by_ten_seconds_or_are_not_written() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let now = writer.now_secs().await;
    writer.insert_flow("Flow").await;
    let run = writer.insert_run("Flow", Some(now)).await;
    assert!(!writer.heartbeat("Flow", run, now + 9).await);
    assert!(writer.heartbeat("Flow", run, now + 10).await);
    let old = writer.insert_run("Flow", None).await;
    assert!(writer.heartbeat("Flow", old, now).await);
}

#[tokio::test]
async fn evidence_belongs_to_the_end_step() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let now = writer.now_ms().await;
    let first = writer.attempt("Flow", 1, now).await;
    let second = writer.attempt_ok("Flow", 1, "True", now + 1).await;
    let third = writer
        .metadata("Flow", 1, "start", "attempt", "1", now + 2)
        .await;
    assert!(first < second && second < third);
    let select = "\
select string_agg(concat_ws(' ', step_name, field_name, value, type, ts_epoch - $1), ', ' order by id)
  from metadata_v3";
    let row = writer
        .client()
        .query_one(select, &[&now])
        .await
        .expect("the table is there");
    assert_eq!(
        row.get::<_, &str>(0),
        "end attempt 0 attempt 0, end attempt_ok True internal_attempt_status 1, start attempt 1 attempt 2"
    );
}

#[tokio::test]
async fn a_killed_server_keeps_committed_rows() {
    let server = Postgres::start(Options::default())
        .await
        .expect("a server of our own");
    let database = Database::on(&server).await;
    let writer = database.writer().await;
    writer.insert_flow("Flow").await;
    let run = writer.insert_run("Flow", None).await;
    let busy = database.client().await;
    let working = tokio::spawn(async move { busy.batch_execute("select pg_sleep(600)").await });

    server.kill9().await.expect("it can be killed");
    assert_eq!(server.pid(), None);
    within(TIMEOUT, "the session ends", working)
        .await
        .expect("no panic")
        .expect_err("its server is dead");
    let refused = database.config().connect(tokio_postgres::NoTls).await;
    assert!(refused.is_err());

    server.start_again().await.expect("it comes up on its data");
    let writer = database.writer().await;
    let row = writer
        .client()
        .query_one("select run_number from runs_v3", &[])
        .await
        .expect("the table is there");
    assert_eq!(row.get::<_, i32>(0), run);
    let log = server.log_tail(1000);
    assert!(
        log.contains("was not properly shut down"),
        "a crash is what the server saw:\n{log}"
    );
    server.stop().await.expect("it stops");
}

#[tokio::test]
async fn a_stopped_server_leaves_nothing_behind() {
    let server = Postgres::start(Options::default())
        .await
        .expect("a server of our own");
    let directory = server.directory().to_owned();
    server.restart().await.expect("it stops and starts");
    assert!(directory.exists());
    server.stop().await.expect("it stops");
    assert!(!directory.exists());
}

#[tokio::test]
async fn a_dropped_server_is_removed_even_when_it_hangs() {
    let server = Postgres::start(Options::default())
        .await
        .expect("a server of our own");
    let directory = server.directory().to_owned();
    let pid = server.pid().expect("it runs");
    let postmaster = Pid::from_raw(i32::try_from(pid).expect("process ids are small"));
    kill(postmaster, Signal::SIGSTOP).expect("it runs");
    drop(server);
    eventually(TIMEOUT, "the directory is gone", async || {
        !directory.exists()
    })
    .await;
}

#[tokio::test]
async fn settings_override_the_defaults_and_invalid_ones_are_reported() {
    let options = Options::default()
        .set("fsync", "on")
        .set("application_name", "it's");
    let server = Postgres::start(options).await.expect("a server of our own");
    let client = connect(&server.config("postgres")).await;
    let row = client
        .query_one(
            "select current_setting('fsync'), current_setting('server_version_num')::int / 10000",
            &[],
        )
        .await
        .expect("settings can be read");
    assert_eq!(row.get::<_, &str>(0), "on");
    assert_eq!(
        row.get::<_, i32>(1),
        i32::try_from(server.major()).expect("a small number")
    );
    assert!(server.version().starts_with(&server.major().to_string()));

    let refusal = Postgres::start(Options::default().set("no_such_setting", "1")).await;
    let text = format!("{:#}", refusal.expect_err("the server does not know it"));
    assert!(text.contains("no_such_setting"), "{text}");
}

#[tokio::test]
async fn a_black_hole_delivers_nothing_and_heals_without_loss() {
    let database = Database::fresh().await;
    let proxy = Proxy::to(shared().await.address()).await;
    let through: tokio_postgres::Config = database
        .url_through(proxy.address())
        .parse()
        .expect("a URI that we wrote");
    let client = connect(&through).await;
    client
        .batch_execute("create table seen (id int)")
        .await
        .expect("the proxy forwards");

    proxy.black_hole();
    let insert = tokio::spawn(async move {
        client
            .batch_execute("insert into seen values (1)")
            .await
            .expect("it is delayed, not lost");
        client
    });
    let connecting = tokio::spawn(async move { connect(&through).await });
    let direct = database.client().await;
    let count = async || -> i64 {
        direct
            .query_one("select count(*) from seen", &[])
            .await
            .expect("the table is there")
            .get(0)
    };
    // There is no event to wait for: some round trips on the direct connection take the time
    // instead.
    for _ in 0..50 {
        assert_eq!(count().await, 0);
    }
    assert!(!insert.is_finished() && !connecting.is_finished());

    proxy.heal();
    let client = within(TIMEOUT, "the statement ends", insert)
        .await
        .expect("no panic");
    within(TIMEOUT, "the connection is made", connecting)
        .await
        .expect("no panic");
    eventually_eq(TIMEOUT, "the row is there", 1, count).await;

    proxy.cut();
    eventually(TIMEOUT, "the connection ends", async || client.is_closed()).await;
}

#[tokio::test]
async fn a_delay_applies_in_both_directions() {
    let proxy = Proxy::to(shared().await.address()).await;
    let database = Database::fresh().await;
    let through: tokio_postgres::Config = database
        .url_through(proxy.address())
        .parse()
        .expect("a URI that we wrote");
    let client = connect(&through).await;
    proxy.delay(Duration::from_millis(50));
    let start = std::time::Instant::now();
    client
        .batch_execute("select 1")
        .await
        .expect("the proxy forwards");
    assert!(
        start.elapsed() >= Duration::from_millis(100),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn an_empty_database_has_no_tables() {
    let database = Database::empty().await;
    let client = database.client().await;
    let error = client
        .query("select from runs_v3", &[])
        .await
        .expect_err("nothing was created");
    assert_eq!(error.code(), Some(&SqlState::UNDEFINED_TABLE));
}

#[tokio::test]
#[should_panic(expected = "the daemon died under the test")]
async fn a_wait_fails_at_once_when_the_daemon_dies() {
    let database = Database::fresh().await;
    let daemon = Launch::on(&database).start().await;
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).expect("process ids are small"));
    kill(pid, Signal::SIGKILL).expect("it runs");
    eventually(
        Duration::from_secs(3600),
        "what never happens",
        async || false,
    )
    .await;
}

#[tokio::test]
async fn a_frozen_daemon_answers_after_the_thaw() {
    let database = Database::fresh().await;
    let daemon = Launch::on(&database).start().await;
    daemon.freeze().await;
    assert!(
        timeout(Duration::from_millis(200), daemon.get("/healthz"))
            .await
            .is_err()
    );
    daemon.thaw();
    daemon.ready().await;
    daemon.kill9().await;
    assert!(daemon.get("/healthz").await.is_none());
}
