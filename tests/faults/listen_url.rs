//! Behind PgBouncer with `--listen-url`: LISTEN and leadership by a direct connection, everything else
//! through the pooler.

use std::time::Duration;

use tokio_postgres::Client;

use super::{command, leads, run, text_of};
use testkit::daemon::{Daemon, Launch};
use testkit::database::{Database, UPSTREAM, connect, shared};
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::pooler::{self, Pooler};
use testkit::postgres::{Options, Postgres};
use testkit::proxy::Proxy;
use testkit::requirement::left_out;
use testkit::wait::{eventually, eventually_eq};
use testkit::writer::Writer;

const TIMEOUT: Duration = Duration::from_secs(60);

/// A daemon whose statements go to one address and whose LISTEN connection goes by another string.
fn launch(database: &Database, statements: std::net::SocketAddr, listen: &str) -> Launch {
    Launch::on(database)
        .env("DATABASE_URL", &database.url_through(statements))
        .env("STATUS_INDEXER_LISTEN_URL", listen)
        .args(&["run", "--metrics-listen", "127.0.0.1:0"])
}

/// A database with the indexer, whose sessions count their calls of functions.
async fn installed() -> Database {
    let database = Database::fresh().await;
    let count = format!(
        "alter database {} set track_functions = 'pl'",
        database.name()
    );
    run(&database.client().await, &count).await;
    command(&database, "migrate").await;
    database
}

/// How often the worker has polled the queue.
async fn polls(client: &Client) -> i64 {
    const POLLS: &str = "\
select coalesce(sum(calls), 0)::int8
  from pg_stat_user_functions
 where schemaname = 'status_indexer'
   and funcname = 'drain'";
    let row = client.query_one(POLLS, &[]).await;
    row.expect("statistics can be read").get(0)
}

/// Waits until the leader has renewed its heartbeat this often, about once a second.
async fn renewals(client: &Client, wanted: u32) {
    let mut last = None;
    let mut seen = 0;
    eventually(TIMEOUT, "the leader renews its heartbeat", async || {
        let row = client
            .query_one(
                "select last_value from status_indexer.leader_heartbeat",
                &[],
            )
            .await
            .expect("the heartbeat can be read");
        let beat: i64 = row.get(0);
        seen += u32::from(last.replace(beat).is_some_and(|last| last != beat));
        seen >= wanted
    })
    .await;
}

async fn metric(daemon: &Daemon, name: &str) -> f64 {
    let value = daemon.metric(&format!("status_indexer_{name}")).await;
    value.unwrap_or(-1.0)
}

async fn complete_a_run(writer: &Writer) {
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let id = writer.insert_run("F", Some(now / 1000)).await;
    writer.attempt_ok("F", id, "True", now).await;
    eventually_status(writer, "F", id, "completed").await;
}

fn logs(daemon: &Daemon, text: &str) -> bool {
    daemon
        .log()
        .iter()
        .any(|line| line.to_string().contains(text))
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_direct_connection_the_daemon_is_notified_and_one_of_two_leads() {
    let database = installed().await;
    let (writer, watcher) = (database.writer().await, database.client().await);
    let pooler = Pooler::to(shared().await.address(), "postgres", 3).await;
    let first = launch(&database, pooler.address(), database.url())
        .start()
        .await;
    eventually(TIMEOUT, "the first leads", async || leads(&first).await).await;
    let second = launch(&database, pooler.address(), database.url())
        .start()
        .await;
    for _ in 0..20 {
        complete_a_run(&writer).await;
    }
    assert_eq!(metric(&first, "listener_connected").await, 1.0);
    assert_eq!(metric(&first, "leader_without_listen").await, 0.0);
    assert!(metric(&first, "notifications_total").await >= 1.0);
    assert_eq!(metric(&second, "listener_connected").await, 1.0);
    assert!(!leads(&second).await);

    // Idle, it polls once in five seconds; without LISTEN it polls ten times a second.
    renewals(&watcher, 8).await;
    let before = polls(&watcher).await;
    renewals(&watcher, 8).await;
    let polled = polls(&watcher).await - before;
    println!("{polled} polls in eight renewals of the heartbeat");
    assert!(polled <= 8, "{polled} polls");

    assert!(first.terminate().await.success());
    eventually(TIMEOUT, "the second leads", async || leads(&second).await).await;
    complete_a_run(&writer).await;
    assert_eq!(metric(&second, "leader_without_listen").await, 0.0);
    assert!(!logs(&second, "every daemon polls"));
    eventually_no_drift(writer.client()).await;
    assert!(second.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_direct_connection_the_daemon_polls_behind_a_transaction_pooler() {
    let database = installed().await;
    let (writer, watcher) = (database.writer().await, database.client().await);
    let pooler = Pooler::to(shared().await.address(), "postgres", 3).await;
    let daemon = launch(&database, pooler.address(), "").start().await;
    complete_a_run(&writer).await;
    assert_eq!(metric(&daemon, "listener_connected").await, 0.0);
    assert_eq!(metric(&daemon, "leader_without_listen").await, 1.0);
    assert_eq!(metric(&daemon, "notifications_total").await, 0.0);
    let before = polls(&watcher).await;
    eventually(TIMEOUT, "it polls without any event", async || {
        polls(&watcher).await > before + 30
    })
    .await;
    assert!(daemon.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_direct_connection_means_polling_until_it_is_back() {
    let database = installed().await;
    let writer = database.writer().await;
    let server = shared().await.address();
    let pooler = Pooler::to(server, "postgres", 3).await;
    let direct = Proxy::to(server).await;
    let nowhere = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("it is bound")
    };
    // Unreachable from the start.
    direct.retarget(nowhere);
    let url = database.url_through(direct.address());
    let daemon = launch(&database, pooler.address(), &url).start().await;
    for round in 0..2 {
        eventually_eq(TIMEOUT, "it leads by polling", 1.0, async || {
            metric(&daemon, "leader_without_listen").await
        })
        .await;
        assert_eq!(metric(&daemon, "listener_connected").await, 0.0);
        complete_a_run(&writer).await;
        assert_eq!(metric(&daemon, "up").await, 1.0);
        assert!(matches!(daemon.get("/readyz").await, Some((200, _))));
        let named = logs(&daemon, "for LISTEN, by --listen-url");
        assert!(named, "{:?}", daemon.log());

        direct.retarget(server);
        eventually_eq(TIMEOUT, "it listens", 1.0, async || {
            metric(&daemon, "listener_connected").await
        })
        .await;
        eventually_eq(TIMEOUT, "it leads by notifications", 0.0, async || {
            metric(&daemon, "leader_without_listen").await
        })
        .await;
        eventually(TIMEOUT, "it leads", async || leads(&daemon).await).await;
        let before = metric(&daemon, "notifications_total").await;
        complete_a_run(&writer).await;
        eventually(TIMEOUT, "it is notified", async || {
            metric(&daemon, "notifications_total").await > before
        })
        .await;
        if round == 0 {
            direct.retarget(nowhere);
            direct.cut();
        }
    }
    eventually_no_drift(writer.client()).await;
    assert!(daemon.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_connection_to_another_database_or_a_pooler_is_refused_in_words() {
    let (database, other) = (installed().await, Database::fresh().await);
    let pooler = Pooler::to(shared().await.address(), "postgres", 3).await;
    for (listen, expected) in [
        (other.url(), "does not lead to the database"),
        (
            &database.url_through(pooler.address()),
            "a pooler in transaction mode",
        ),
    ] {
        let daemon = launch(&database, pooler.address(), listen).spawn();
        eventually(TIMEOUT, expected, async || {
            matches!(daemon.get("/readyz").await, Some((503, body)) if body.contains(expected))
        })
        .await;
        assert!(!leads(&daemon).await);
        if listen == other.url() {
            let names = [database.name(), other.name()];
            let named = names.iter().all(|name| logs(&daemon, name));
            assert!(named, "{:?}", daemon.log());
        }
        assert!(daemon.terminate().await.success());
    }

    for malformed in ["host=h nosuch=secret", "postgresql://u:secret@h:port/x"] {
        let output = launch(&database, pooler.address(), malformed)
            .output()
            .await;
        assert_eq!(output.status.code(), Some(64));
        let text = text_of(&output);
        assert!(text.contains("STATUS_INDEXER_LISTEN_URL"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_moves_one_of_the_two_connections_ends_the_use_of_the_other() {
    let database = installed().await;
    let old = shared().await;
    let new = Postgres::start(Options::default())
        .await
        .expect("a server of our own");
    // The same database on another server.
    let admin = connect(&new.config("postgres")).await;
    run(&admin, &format!("create database {}", database.name())).await;
    let moved = Writer::new(connect(&new.config(database.name())).await);
    run(moved.client(), UPSTREAM).await;
    let migrated = Launch::on(&database)
        .env("DATABASE_URL", &new.url(database.name()))
        .args(&["migrate"])
        .output()
        .await;
    assert!(migrated.status.success(), "{}", text_of(&migrated));

    let statements = Proxy::to(old.address()).await;
    let daemon = launch(&database, statements.address(), database.url())
        .start()
        .await;
    eventually_eq(TIMEOUT, "it listens", 1.0, async || {
        metric(&daemon, "listener_connected").await
    })
    .await;
    statements.retarget(new.address());
    statements.cut();
    daemon
        .logged("the two lead apart", |line| {
            line.to_string().contains("does not lead to the database")
        })
        .await;
    eventually_eq(TIMEOUT, "it polls the new one", 1.0, async || {
        metric(&daemon, "leader_without_listen").await
    })
    .await;
    complete_a_run(&moved).await;
    statements.retarget(old.address());
    statements.cut();
    eventually_eq(TIMEOUT, "it listens again", 1.0, async || {
        metric(&daemon, "listener_connected").await
    })
    .await;
    complete_a_run(&database.writer().await).await;
    assert!(daemon.terminate().await.success());
    new.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_leader_behind_a_pooler_is_replaced_and_keeps_no_lock() {
    let database = installed().await;
    let writer = database.writer().await;
    let pooler = Pooler::to(shared().await.address(), "postgres", 3).await;
    let first = launch(&database, pooler.address(), database.url())
        .start()
        .await;
    eventually(TIMEOUT, "the first leads", async || leads(&first).await).await;
    let second = launch(&database, pooler.address(), database.url())
        .start()
        .await;
    first.freeze().await;
    complete_a_run(&writer).await;
    eventually(TIMEOUT, "the second leads", async || leads(&second).await).await;
    first.thaw();
    eventually(TIMEOUT, "one of them leads", async || {
        leads(&first).await != leads(&second).await
    })
    .await;
    complete_a_run(&writer).await;
    eventually_no_drift(writer.client()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn session_pooling_needs_nothing_and_leaves_nothing() {
    let database = installed().await;
    let writer = database.writer().await;
    for more in [
        &[("pool_mode", "session")][..],
        &[
            ("pool_mode", "session"),
            ("server_reset_query", "DISCARD ALL"),
        ],
        &[("pool_mode", "session"), ("server_reset_query", "")],
    ] {
        let pooler = Pooler::with(shared().await.address(), "postgres", 10, more).await;
        let daemon = launch(&database, pooler.address(), "").start().await;
        eventually_eq(TIMEOUT, "it listens", 1.0, async || {
            metric(&daemon, "listener_connected").await
        })
        .await;
        eventually(TIMEOUT, "it leads", async || leads(&daemon).await).await;
        assert_eq!(metric(&daemon, "leader_without_listen").await, 0.0);
        complete_a_run(&writer).await;
        assert!(daemon.terminate().await.success());
        // Its session, with the lock, ends although the pooler may keep the connection to the server.
        eventually_eq(TIMEOUT, "the lock is free", 0, async || {
            let locks = "select count(*) from pg_locks where locktype = 'advisory' and database = \
                         (select oid from pg_database where datname = current_database())";
            let row = writer.client().query_one(locks, &[]).await;
            row.expect("locks can be read").get::<_, i64>(0)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_settings_of_a_transaction_pooler_do_not_matter() {
    let database = installed().await;
    let writer = database.writer().await;
    let mut settings = vec![
        ("server_reset_query_always", "1"),
        ("server_reset_query", ""),
        ("ignore_startup_parameters", "extra_float_digits,options"),
        ("server_round_robin", "1"),
        ("default_pool_size", "1"),
    ];
    if pooler::version() >= (1, 21) {
        settings.push(("max_prepared_statements", "0"));
        settings.push(("max_prepared_statements", "100"));
    } else {
        left_out("needs PgBouncer 1.21 or later: max_prepared_statements");
    }
    for setting in settings {
        let server = shared().await.address();
        let pooler = Pooler::with(server, "postgres", 3, &[setting]).await;
        let daemon = launch(&database, pooler.address(), database.url())
            .start()
            .await;
        complete_a_run(&writer).await;
        let url = format!(
            "http://{}/flows/F/runs?status=completed",
            daemon.api().await
        );
        let client = reqwest::Client::builder().no_proxy().build();
        let answer = client.expect("a plain client").get(url).send().await;
        assert_eq!(answer.expect("it answers").status(), 200, "{setting:?}");
        assert!(daemon.terminate().await.success());
    }
    // A parameter that the pooler does not know is named.
    let pooler = Pooler::to(shared().await.address(), "postgres", 3).await;
    let url = format!(
        "{}?options=-cwork_mem%3D8MB",
        database.url_through(pooler.address())
    );
    let daemon = Launch::on(&database)
        .env("DATABASE_URL", &url)
        .args(&["run", "--metrics-listen", "127.0.0.1:0"])
        .spawn();
    daemon
        .logged("the parameter", |line| {
            line.to_string().contains("startup parameter")
        })
        .await;
    assert!(daemon.terminate().await.success());
}
