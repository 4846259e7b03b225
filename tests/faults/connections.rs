//! A server without a free connection: the daemon waits, keeps what it has, and leaves room for others.

use std::time::Duration;

use tokio_postgres::{Client, Config, NoTls};

use super::{command, leads, run, sessions};
use testkit::daemon::Launch;
use testkit::database::{Database, shared};
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::postgres::{Options, Postgres};
use testkit::wait::{eventually, eventually_eq};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Opens connections until the server refuses one.
async fn take_all(config: &Config) -> Vec<Client> {
    let mut taken = Vec::new();
    loop {
        match config.connect(NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                taken.push(client);
            }
            Err(error) => {
                let code = error.code().map(|code| code.code().to_owned());
                assert_eq!(code.as_deref(), Some("53300"), "{error:?}");
                return taken;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_free_connection_the_daemon_waits_says_why_and_recovers() {
    let server = Postgres::start(
        Options::default()
            .set("max_connections", "20")
            .set("superuser_reserved_connections", "3"),
    )
    .await
    .expect("a server of our own");
    let database = Database::on(&server).await;
    let (admin, writer) = (database.client().await, database.writer().await);
    run(
        &admin,
        "create role indexer login; create role service login",
    )
    .await;
    command(&database, "migrate --grant-to indexer").await;
    let url = format!(
        "{}?application_name=indexer",
        database.url().replace("postgres@", "indexer@")
    );
    let launch = Launch::on(&database).env("DATABASE_URL", &url).args(&[
        "run",
        "--metrics-listen",
        "127.0.0.1:0",
    ]);
    let daemon = launch.clone().start().await;
    eventually(TIMEOUT, "it leads", async || leads(&daemon).await).await;
    writer.insert_flow("F").await;
    let mut service = database.config();
    service.user("service");

    // What it has, it keeps: statuses follow although no connection is free.
    let taken = take_all(&service).await;
    let now = writer.now_ms().await;
    let first = writer.insert_run("F", Some(now / 1000)).await;
    writer.attempt_ok("F", first, "True", now).await;
    eventually_status(&writer, "F", first, "completed").await;

    // Its connections are lost, and others take their places.
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'indexer'";
    run(
        &admin,
        &format!("alter role indexer connection limit 0; {end}"),
    )
    .await;
    eventually_eq(TIMEOUT, "they are gone", 0, async || {
        sessions(&admin, "indexer").await
    })
    .await;
    let more = take_all(&service).await;
    run(&admin, "alter role indexer connection limit -1").await;
    let second = writer.insert_run("F", Some(now / 1000)).await;
    writer.attempt_ok("F", second, "True", now).await;
    daemon
        .logged("the reason", |line| {
            let line = line.to_string();
            line.contains("connection slots") || line.contains("too many clients")
        })
        .await;
    eventually_eq(TIMEOUT, "not ready", Some(503), async || {
        daemon.get("/readyz").await.map(|(code, _)| code)
    })
    .await;
    assert!(matches!(daemon.get("/healthz").await, Some((200, _))));
    // Another one, which starts now, waits too.
    let late = launch.spawn();
    late.logged("it waits", |line| {
        line["message"] == "waiting for the database"
    })
    .await;
    assert_eq!(sessions(&admin, "indexer").await, 0);
    assert_eq!(writer.status("F", second).await, "running");

    drop((taken, more));
    eventually_status(&writer, "F", second, "completed").await;
    daemon.ready().await;
    late.ready().await;
    eventually_no_drift(&admin).await;
    assert!(late.terminate().await.success());
    assert!(daemon.terminate().await.success());
    server.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_number_of_connections_is_never_exceeded() {
    let database = Database::fresh().await;
    let (admin, writer) = (database.client().await, database.writer().await);
    let role = format!("limited_{}", database.name());
    // As documented: --pool-max + --reader-pool-max + 1. The server refuses more.
    run(
        &admin,
        &format!("create role {role} login connection limit 6"),
    )
    .await;
    command(&database, &format!("migrate --grant-to {role}")).await;
    let port = shared().await.port();
    let url = format!("postgresql://{role}@127.0.0.1:{port}/{}", database.name());
    let daemon = Launch::on(&database)
        .env("DATABASE_URL", &url)
        .args(&["run", "--metrics-listen", "127.0.0.1:0"])
        .arg("--pool-max")
        .arg("2")
        .arg("--reader-pool-max")
        .arg("3")
        .start()
        .await;
    // The server counts the connections of the start until their processes have ended.
    eventually(
        TIMEOUT,
        "those of the pool and LISTEN are left",
        async || {
            let count = "select count(*) from pg_stat_activity where usename = $1";
            let row = admin.query_one(count, &[&role]).await;
            row.expect("activity can be read").get::<_, i64>(0) <= 3
        },
    )
    .await;
    writer.insert_flow("F").await;
    let page = format!("http://{}/flows/F/runs?status=running", daemon.api().await);
    let client = reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("a plain client");
    let mut requests = tokio::task::JoinSet::new();
    let mut ids = Vec::new();
    for _ in 0..20 {
        for _ in 0..5 {
            requests.spawn(get_patiently(client.clone(), page.clone()));
        }
        let now = writer.now_ms().await;
        let id = writer.insert_run("F", Some(now / 1000)).await;
        writer.attempt_ok("F", id, "True", now).await;
        ids.push(id);
    }
    for id in ids {
        eventually_status(&writer, "F", id, "completed").await;
    }
    while let Some(answer) = requests.join_next().await {
        let (code, text) = answer.expect("the request does not panic");
        assert_eq!(code, 200, "{text} {:?}", daemon.log());
    }
    let refused = daemon
        .log()
        .iter()
        .any(|line| line.to_string().contains("too many connections"));
    assert!(!refused, "{:?}", daemon.log());
    assert!(daemon.terminate().await.success());
    run(&admin, &format!("drop owned by {role}; drop role {role}")).await;
}

/// The code and the text of the answer. Asks again while the API says so, as on a slow machine more
/// requests wait than it allows.
async fn get_patiently(client: reqwest::Client, url: String) -> (u16, String) {
    loop {
        let answer = client.get(&url).send().await.expect("it is answered");
        if answer.headers().contains_key("retry-after") {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        let code = answer.status().as_u16();
        return (code, answer.text().await.expect("the answer is complete"));
    }
}
