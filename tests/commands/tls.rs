//! TLS to the server, by libpq's modes.

use std::fs;
use std::path::Path;
use std::process::Output;

use testkit::daemon::Launch;
use testkit::database::Database;

use super::cli::{run, text};
use crate::connect::server::{Certificates, start};

/// Certificates by an authority of our own, for a server named `localhost`.
async fn certificates() -> Certificates {
    let created = Certificates::new();
    fs::write(
        created.path("ext"),
        "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n",
    )
    .expect("our own directory");
    for args in [
        "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.crt -subj /CN=authority",
        "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout other.key -out other.crt -subj /CN=stranger",
        "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.crt",
    ] {
        created.openssl(args).await;
    }
    created
}

async fn status_over(database: &Database, host: &str, parameters: &str) -> Output {
    let port = database.config().get_ports()[0];
    let dsn = format!(
        "host={host} port={port} user=postgres dbname={} {parameters}",
        database.name()
    );
    run(
        database,
        &["migrate", "status"],
        &[("DATABASE_URL", dsn.as_str())],
    )
    .await
}

fn root(path: &Path) -> String {
    format!("sslrootcert={}", path.display())
}

#[tokio::test]
async fn tls_is_used_required_and_verified_according_to_sslmode() {
    let certificates = certificates().await;
    let server = start().await;
    certificates.install(&server, "server").await;
    let database = Database::on(&server).await;
    let output = run(&database, &["migrate"], &[]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let (ours, others) = (
        root(&certificates.path("ca.crt")),
        root(&certificates.path("other.crt")),
    );
    for (host, parameters, refusal) in [
        ("127.0.0.1", "sslmode=disable".to_owned(), None),
        ("127.0.0.1", "sslmode=prefer".to_owned(), None),
        ("127.0.0.1", "sslmode=require".to_owned(), None),
        ("127.0.0.1", format!("sslmode=verify-ca {ours}"), None),
        ("localhost", format!("sslmode=verify-full {ours}"), None),
        ("localhost", format!("sslmode=require {ours}"), None),
        (
            "127.0.0.1",
            format!("sslmode=verify-full {ours}"),
            Some("valid for localhost, not for 127.0.0.1"),
        ),
        (
            "localhost",
            format!("sslmode=verify-full {others}"),
            Some("no trusted authority signed"),
        ),
        (
            "localhost",
            format!("sslmode=verify-ca {others}"),
            Some("no trusted authority signed"),
        ),
        (
            "localhost",
            format!("sslmode=require {others}"),
            Some("no trusted authority signed"),
        ),
        // Our authority is not among those of the system.
        ("localhost", "sslmode=verify-full".to_owned(), Some("")),
    ] {
        let output = status_over(&database, host, &parameters).await;
        let message = text(&output);
        match refusal {
            None => assert_eq!(
                output.status.code(),
                Some(0),
                "{host} {parameters}: {message}"
            ),
            Some(words) => {
                assert!(!output.status.success(), "{host} {parameters}: {message}");
                assert!(message.contains(words), "{host} {parameters}: {message}");
            }
        }
    }

    // With the metadata service's variables, and for every session of the daemon.
    let port = database.config().get_ports()[0].to_string();
    let path = certificates.path("ca.crt").display().to_string();
    let mut daemon = Launch::on(&database).env("DATABASE_URL", "");
    for (name, value) in [
        ("MF_METADATA_DB_HOST", "localhost"),
        ("MF_METADATA_DB_PORT", &port),
        ("MF_METADATA_DB_NAME", database.name()),
        ("MF_METADATA_DB_SSL_MODE", "verify-full"),
        ("MF_METADATA_DB_SSL_ROOT_CERT_PATH", &path),
    ] {
        daemon = daemon.env(name, value);
    }
    let daemon = daemon.start().await;
    let client = database.client().await;
    let plain = "\
select count(*)
  from pg_stat_ssl s join pg_stat_activity a using (pid)
 where a.application_name = 'status-indexer' and a.datname = current_database() and not s.ssl";
    let row = client
        .query_one(plain, &[])
        .await
        .expect("the view is there");
    assert_eq!(
        row.get::<_, i64>(0),
        0,
        "every session of the daemon is encrypted"
    );
    assert!(daemon.terminate().await.success());
    server.stop().await.expect("it stops");
}

#[tokio::test]
async fn a_server_without_tls_is_refused_where_tls_is_required() {
    let database = Database::fresh().await;
    for mode in ["require", "verify-ca", "verify-full"] {
        let output = status_over(&database, "127.0.0.1", &format!("sslmode={mode}")).await;
        let message = text(&output);
        assert_eq!(output.status.code(), Some(1), "{mode}: {message}");
        assert!(
            message.contains("server does not support TLS"),
            "{mode}: {message}"
        );
    }
    let output = status_over(&database, "127.0.0.1", "sslmode=prefer").await;
    assert!(text(&output).contains("not installed"), "{}", text(&output));
}
