//! Behind PgBouncer in transaction mode: no LISTEN, no leader, and connections shared with other
//! clients.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_postgres::{Client, Config, SimpleQueryMessage};

use super::{command, run, text_of};
use testkit::daemon::Launch;
use testkit::database::{Database, connect, shared};
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::pooler::Pooler;
use testkit::wait::eventually;

const TIMEOUT: Duration = Duration::from_secs(30);

/// All session state that one client of the pooler could leave to the next.
async fn leftovers(client: &Client) -> BTreeSet<String> {
    const LEFT: &str = "\
select name || ' = ' || setting
  from pg_settings
 where source = 'session'
   and name not in ('application_name', 'client_encoding')
 union
select 'listens to ' || pg_listening_channels()
 union
select 'holds lock ' || objid
  from pg_locks
 where locktype = 'advisory'
   and pid = pg_backend_pid()
 union
select 'has prepared ' || name
  from pg_prepared_statements
 union
select 'is in a transaction of ' || (clock_timestamp() - now())
 where clock_timestamp() - now() > interval '1 s'";
    let messages = client.simple_query(LEFT).await.expect("the pooler works");
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_transaction_pooler_the_daemon_polls_and_leaves_no_session_state() {
    let database = Database::fresh().await;
    let (admin, writer) = (database.client().await, database.writer().await);
    let role = format!("pooled_{}", database.name());
    // The most hostile defaults that a role can have.
    run(
        &admin,
        &format!(
            "create role {role} login;
             alter role {role} set default_transaction_isolation = 'serializable';
             alter role {role} set default_transaction_read_only = on;"
        ),
    )
    .await;
    command(&database, &format!("migrate --grant-to {role}")).await;
    let pooler = Pooler::to(shared().await.address(), &role, 3).await;
    let url = database.url_through(pooler.address());
    let through: Config = url.parse().expect("a URI that we wrote");
    let neighbour = connect(&through).await;
    assert_eq!(leftovers(&neighbour).await, BTreeSet::new());

    let daemon = Launch::on(&database)
        .env("DATABASE_URL", &url)
        .env("RUN_INACTIVE_CUTOFF_TIME", "3")
        .args(&["run", "--metrics-listen", "127.0.0.1:0"])
        .start()
        .await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        let id = writer.insert_run("F", Some(now / 1000)).await;
        writer.attempt_ok("F", id, "True", now).await;
        ids.push(id);
        assert_eq!(leftovers(&neighbour).await, BTreeSet::new());
    }
    for id in ids {
        eventually_status(&writer, "F", id, "completed").await;
        assert_eq!(leftovers(&neighbour).await, BTreeSet::new());
    }
    let now = writer.now_secs().await;
    let stale = writer.insert_run("F", Some(now)).await;
    eventually_status(&writer, "F", stale, "failed").await;
    eventually_no_drift(writer.client()).await;

    let logged = |daemon: &testkit::daemon::Daemon| {
        let log = daemon.log();
        log.iter()
            .filter(|line| line["message"].to_string().contains("transaction pooler"))
            .count()
    };
    assert_eq!(logged(&daemon), 1);
    assert_eq!(
        daemon.metric("status_indexer_listener_connected").await,
        Some(0.0)
    );
    assert!(matches!(daemon.get("/readyz").await, Some((200, _))));

    let number = stale.to_string();
    for words in [
        vec!["explain", "F", &number, "--cutoff", "3"],
        vec!["verify", "--cutoff", "3"],
        vec!["backfill"],
        vec!["migrate", "status"],
    ] {
        let output = Launch::on(&database)
            .env("DATABASE_URL", &url)
            .args(&words)
            .output()
            .await;
        assert!(output.status.success(), "{words:?}: {}", text_of(&output));
        assert_eq!(leftovers(&neighbour).await, BTreeSet::new(), "{words:?}");
    }
    let refused = Launch::on(&database)
        .env("DATABASE_URL", &url)
        .args(&["migrate", "up"])
        .output()
        .await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text_of(&refused).contains("need a session"),
        "{}",
        text_of(&refused)
    );
    eventually(TIMEOUT, "nothing is left behind", async || {
        leftovers(&neighbour).await.is_empty()
    })
    .await;
    assert!(daemon.terminate().await.success());

    drop(pooler);
    run(&admin, &format!("drop owned by {role}; drop role {role}")).await;
}
