//! The password changes under a running daemon.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::drift::eventually_status;
use testkit::postgres::Postgres;

use super::server::{set_rules, start};
use super::{logged, set_up_run};

const RULES: &str = "\
host all indexer all scram-sha-256
host all all all trust
local all all trust
";

const END_SESSIONS: &str = "\
select pg_terminate_backend(pid)
  from pg_stat_activity
 where usename = 'indexer'";

/// A server whose role `indexer` needs this password.
pub(crate) async fn server_with_password(password: &str) -> (Postgres, Database) {
    let server = start().await;
    set_rules(&server, RULES).await;
    let database = Database::on(&server).await;
    // The default before PostgreSQL 14 is md5.
    let create = format!(
        "set password_encryption = 'scram-sha-256';
         create role indexer superuser login password '{password}'"
    );
    let client = database.client().await;
    client
        .batch_execute(&create)
        .await
        .expect("tests are superuser");
    (server, database)
}

async fn change_password(database: &Database, password: &str) {
    let client = database.client().await;
    let alter = format!(
        "set password_encryption = 'scram-sha-256'; alter role indexer password '{password}'"
    );
    client
        .batch_execute(&alter)
        .await
        .expect("tests are superuser");
    client
        .execute(END_SESSIONS, &[])
        .await
        .expect("tests are superuser");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_from_a_file_may_change_while_the_daemon_runs() {
    let (server, database) = server_with_password("old").await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("password");
    let path = file.to_str().expect("a path of ASCII");
    let url = database.url().replace("postgres@", "indexer@");
    let (passfile, service) = (
        format!("{url}?passfile={path}"),
        format!("{url}?service=s&servicefile={path}"),
    );
    let dsn = database.url().replace("postgres@", "indexer:PASSWORD@");
    for (url, variable, content) in [
        (url.as_str(), "MF_METADATA_DB_PSWD_FILE", "PASSWORD"),
        // The password file and the service file of libpq.
        (&passfile, "UNUSED", "*:*:*:*:PASSWORD"),
        (&service, "UNUSED", "[s]\npassword=PASSWORD"),
        ("", "DATABASE_URL_FILE", &dsn),
    ] {
        let write = |password: &str| {
            let content = content.replace("PASSWORD", password);
            fs::write(&file, content + "\n").expect("writable");
            let permissions = fs::Permissions::from_mode(0o600);
            fs::set_permissions(&file, permissions).expect("it is ours");
        };
        change_password(&database, "old").await;
        write("old");
        let launch = Launch::on(&database).env("DATABASE_URL", url);
        let daemon = launch.env(variable, path).start().await;
        let (writer, run) = set_up_run(&database).await;
        change_password(&database, "new").await;
        logged(&daemon, "password authentication failed").await;
        // A session that was just beginning may have outlived the first change.
        change_password(&database, "new").await;
        writer
            .attempt_ok("F", run, "True", writer.now_ms().await)
            .await;
        write("new");
        eventually_status(&writer, "F", run, "completed").await;
        daemon.ready().await;
        assert!(daemon.terminate().await.success());
    }
    server.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_refused_logins_ends_the_daemon_with_the_reason() {
    let (server, database) = server_with_password("old").await;
    let url = database.url().replace("postgres@", "indexer:old@");
    let daemon = Launch::on(&database)
        .env("DATABASE_URL", &url)
        .env("STATUS_INDEXER_LOGIN_TIMEOUT", "3")
        .start()
        .await;
    change_password(&database, "new").await;
    assert_eq!(daemon.exit().await.code(), Some(1));
    let log = format!("{:?}", daemon.log());
    assert!(log.contains("has refused every login for 3 s"), "{log}");
    assert!(log.contains("password authentication failed"), "{log}");

    // And at the start.
    let daemon = Launch::on(&database)
        .env("DATABASE_URL", &url)
        .env("STATUS_INDEXER_LOGIN_TIMEOUT", "1")
        .spawn();
    assert_eq!(daemon.exit().await.code(), Some(1));

    // With 0, never: a limit of 0 s would be over at the first refusal.
    let daemon = Launch::on(&database)
        .env("DATABASE_URL", &url)
        .env("STATUS_INDEXER_LOGIN_TIMEOUT", "0")
        .spawn();
    logged(&daemon, "password authentication failed").await;
    change_password(&database, "old").await;
    daemon.ready().await;
    assert!(daemon.terminate().await.success());
    server.stop().await.expect("it stops");
}
