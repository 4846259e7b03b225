//! Services may start in any order: commands and the daemon wait for the database.

use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::wait::eventually;

use super::server::{set_rules, start};
use super::{TIMEOUT, logged};

#[tokio::test(flavor = "multi_thread")]
async fn migrate_and_backfill_wait_for_a_database_that_starts_later() {
    let server = start().await;
    let database = Database::on(&server).await;
    for command in ["migrate", "backfill"] {
        server.kill9().await.expect("it can be killed");
        let waiting = Launch::on(&database).args(&[command]).spawn();
        logged(&waiting, "waiting for the database").await;
        server.start_again().await.expect("it starts");
        assert_eq!(waiting.exit().await.code(), Some(0), "{command}");
    }
    server.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_gives_up_after_the_stated_time_and_says_what_to_do() {
    let database = Database::fresh().await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let closed = closed
        .expect("a free port")
        .local_addr()
        .expect("it is bound");
    for (url, advice) in [
        (database.url_through(closed), "check that it runs"),
        (
            database.url().replace("postgres@", "nosuch@"),
            "the server refuses the login",
        ),
    ] {
        for command in ["migrate", "backfill"] {
            let output = Launch::on(&database)
                .args(&[command, "--wait", "1"])
                .env("DATABASE_URL", &url)
                .output()
                .await;
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains("not available for 1 s"), "{text}");
            assert!(text.contains(advice), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_refused_for_a_while_does_not_end_the_daemon() {
    let server = start().await;
    let database = Database::on(&server).await;
    let role = "create role app superuser login";
    let client = database.client().await;
    client
        .batch_execute(role)
        .await
        .expect("tests are superuser");
    let rules = "host all all all trust\nlocal all all trust\n";
    set_rules(&server, &format!("host all app all reject\n{rules}")).await;
    let url = database.url().replace("postgres@", "app@");
    let daemon = Launch::on(&database).env("DATABASE_URL", &url).spawn();
    logged(&daemon, "pg_hba.conf rejects connection").await;
    assert_eq!(daemon.get("/readyz").await.map(|(code, _)| code), Some(503));
    // An alert sees it before the daemon has started its stages.
    let refused = "status_indexer_db_errors_total{sqlstate=\"28000\"}";
    eventually(TIMEOUT, "the refusals are counted", async || {
        daemon.metric(refused).await >= Some(2.0)
    })
    .await;
    assert_eq!(daemon.metric("status_indexer_up").await, Some(0.0));
    set_rules(&server, rules).await;
    daemon.ready().await;
    assert!(daemon.terminate().await.success());
    server.stop().await.expect("it stops");
}
