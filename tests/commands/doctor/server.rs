//! Faults of the network, the server and what is between: hosts, TLS, passwords, poolers, standbys,
//! replication, limits of the server.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use testkit::daemon::Launch;
use testkit::database::{Database, connect, shared};
use testkit::pooler::Pooler;
use testkit::postgres::{Options, Postgres};
use testkit::proxy::Proxy;
use testkit::requirement::left_out;
use testkit::standby::Standby;
use tokio::net::TcpListener;

use super::{Doctor, execute, migrate};
use crate::connect::server::{Certificates, set_rules, start};

/// An address at which nothing listens.
async fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

/// A server of the test's own with these settings, and a database with the indexer.
async fn server_with(settings: &[(&str, &str)]) -> (Postgres, Database) {
    let mut options = Options::default();
    for (name, value) in settings {
        options = options.set(name, value);
    }
    let server = Postgres::start(options).await.expect("a server of our own");
    let database = Database::on(&server).await;
    migrate(&database, &[]).await;
    (server, database)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_host_is_tried_and_one_that_accepts_writes_is_enough() {
    let database = Database::fresh().await;
    let _daemon = Launch::on(&database).start().await;
    let (port, closed) = (shared().await.port(), closed_port().await);
    let url = |hosts: &str| format!("postgresql://postgres@{hosts}/{}", database.name());
    let both = url(&format!("127.0.0.1:{closed},127.0.0.1:{port}"));
    let report = Doctor::on(&database)
        .env("DATABASE_URL", &both)
        .report()
        .await;
    report.is("connection", "warning", &format!("127.0.0.1:{closed}"));
    report.is(
        "connection",
        "ok",
        &format!("127.0.0.1:{port}: connected in"),
    );
    report.is_well();

    let none = url(&format!("127.0.0.1:{closed}"));
    let report = Doctor::on(&database)
        .env("DATABASE_URL", &none)
        .report()
        .await;
    report.is("connection", "problem", "Connection refused");
    for name in status_indexer::doctor::names() {
        if !["connection", "password"].contains(&name) {
            report.is(name, "unknown", "not done: there is no connection");
        }
    }
    let unknown = url("nosuch.invalid");
    let report = Doctor::on(&database)
        .env("DATABASE_URL", &unknown)
        .report()
        .await;
    report.is("connection", "problem", "cannot resolve the host name");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_is_waited_for_no_longer_than_allowed() {
    let database = Database::fresh().await;
    migrate(&database, &[]).await;
    let proxy = Proxy::to(shared().await.address()).await;
    proxy.black_hole();
    let url = database.url_through(proxy.address());
    let doctor = Doctor::on(&database).env("DATABASE_URL", &url);
    let report = doctor.arg("--wait", "1").report().await;
    report.is("connection", "problem", "no answer within 1s");
    report.is("leader", "unknown", "there is no connection");
    // The limit on everything is shorter than the one on an address.
    let doctor = Doctor::on(&database).env("DATABASE_URL", &url);
    let report = doctor.arg("--timeout", "1").report().await;
    report.is("connection", "problem", "within --timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_reported_with_its_verification_and_the_ends_of_certificates() {
    let certificates = Certificates::new();
    fs::write(
        certificates.path("ext"),
        "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n",
    )
    .expect("our own directory");
    for args in [
        "req -x509 -newkey rsa:2048 -nodes -days 400 -keyout ca.key -out ca.crt -subj /CN=authority",
        "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out short.crt",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 200 -extfile ext -out server.crt",
    ] {
        certificates.openssl(args).await;
    }
    let (server, database) = server_with(&[]).await;
    certificates.install(&server, "server").await;
    let port = server.port();
    let root = certificates.path("ca.crt").display().to_string();
    let (key, short) = (
        certificates.path("server.key"),
        certificates.path("short.crt"),
    );
    let client = format!("sslcert={} sslkey={}", short.display(), key.display());
    let full = format!("sslmode=verify-full sslrootcert={root}");
    for (parameters, state, words) in [
        (
            "sslmode=disable".to_owned(),
            "ok",
            "no TLS (sslmode=disable)",
        ),
        (
            full.clone(),
            "ok",
            "TLSv1.3, sslmode=verify-full, the certificate and its name are verified",
        ),
        (
            format!("{full} ssl_max_protocol_version=TLSv1.2"),
            "ok",
            "TLSv1.2",
        ),
        ("sslmode=require".to_owned(), "ok", "is not verified"),
        (
            format!("{full} {client}"),
            "warning",
            "short.crt expires on",
        ),
    ] {
        let dsn = format!(
            "host=localhost port={port} user=postgres dbname={} {parameters}",
            database.name()
        );
        let report = Doctor::on(&database)
            .env("DATABASE_URL", &dsn)
            .report()
            .await;
        report.is("tls", state, words);
    }

    // A certificate of the server that expires soon.
    fs::copy(&short, certificates.path("server.crt")).expect("our own directory");
    certificates.install(&server, "server").await;
    let dsn = format!(
        "host=localhost port={port} user=postgres dbname={} {full}",
        database.name()
    );
    let report = Doctor::on(&database)
        .env("DATABASE_URL", &dsn)
        .report()
        .await;
    report.is("tls", "warning", "the certificate expires on");

    // An authority that did not sign it.
    certificates
        .openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -keyout other.key -out other.crt -subj /CN=x")
        .await;
    let other = dsn.replace("ca.crt", "other.crt");
    let report = Doctor::on(&database)
        .env("DATABASE_URL", &other)
        .report()
        .await;
    report.is("connection", "problem", "no trusted authority signed");
    server.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_that_are_refused_or_cannot_be_read_are_problems() {
    let server = start().await;
    set_rules(
        &server,
        "host all asked all scram-sha-256\nhost all all all trust\nlocal all all trust\n",
    )
    .await;
    let database = Database::on(&server).await;
    migrate(&database, &[]).await;
    let client = database.client().await;
    execute(
        &client,
        "set password_encryption = 'scram-sha-256'; create role asked superuser login password 'right'",
    )
    .await;
    let url = |password: &str| {
        database
            .url()
            .replace("postgres@", &format!("asked{password}@"))
    };
    let report = Doctor::on(&database)
        .env("DATABASE_URL", &url(":wrong"))
        .report()
        .await;
    report.is("connection", "problem", "password authentication failed");
    report.is("connection", "problem", "pg_hba.conf");
    assert!(!report.json.to_string().contains("wrong"));

    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("password");
    let path = file.display().to_string();
    let from_file = Doctor::on(&database)
        .env("DATABASE_URL", &url(""))
        .env("MF_METADATA_DB_PSWD_FILE", &path);
    from_file
        .report()
        .await
        .is("password", "problem", "cannot read the password from");
    fs::write(&file, "right\n").expect("writable");
    from_file.report().await.is("password", "ok", &path);
    from_file.report().await.is("connection", "ok", "connected");

    // A password file of libpq that others can read is ignored.
    fs::write(&file, "*:*:*:*:right\n").expect("writable");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let passfile = format!("{}?passfile={path}", url(""));
    let doctor = Doctor::on(&database).env("DATABASE_URL", &passfile);
    doctor.report().await.is("password", "warning", "chmod 600");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it is ours");
    doctor.report().await.is("password", "ok", "is used");
    server.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_pooler_is_found() {
    let database = Database::fresh().await;
    let _daemon = Launch::on(&database).start().await;
    let pooler = Pooler::to(shared().await.address(), "postgres", 3).await;
    let url = database.url_through(pooler.address());
    let report = Doctor::on(&database)
        .env("DATABASE_URL", &url)
        .report()
        .await;
    report.is("sessions", "warning", "transaction pooler");
    report.is("column", "ok", "valid since");
    report.is_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_a_problem_unless_the_primary_is_among_the_hosts() {
    let server = start().await;
    let database = Database::on(&server).await;
    let daemon = Launch::on(&database).start().await;
    let Some(standby) = Standby::of(&server).await else {
        return;
    };
    standby.catches_up(&database.client().await).await;
    let alone = standby.url(database.name());
    let report = Doctor::on(&database)
        .env("DATABASE_URL", &alone)
        .report()
        .await;
    report.is("connection", "ok", "a standby");
    report.is("primary", "problem", "in recovery");
    report.is("triggers", "ok", "");

    let host = alone.split(['@', '/']).nth(3).expect("a host and a port");
    let both = database
        .url()
        .replace("postgres@", &format!("postgres@{host},"));
    let report = Doctor::on(&database)
        .env("DATABASE_URL", &both)
        .report()
        .await;
    report.is("primary", "ok", "");
    report.is_well();
    assert!(daemon.terminate().await.success());
    standby.stop().await;
    server.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_publications_and_prepared_transactions_that_keep_what_nobody_reads_are_warnings() {
    let settings = [("wal_level", "logical"), ("max_prepared_transactions", "4")];
    let (server, database) = server_with(&settings).await;
    let client = database.client().await;
    let doctor = Doctor::on(&database).arg("--max-transaction-age", "0");
    let report = doctor.report().await;
    report.is("publications", "ok", "no publication");
    report.is("replication_slots", "ok", "");
    report.is("prepared_transactions", "ok", "");

    execute(&client, "create publication mine for table runs_v3").await;
    let report = doctor.report().await;
    report.is("publications", "ok", "by mine");
    execute(
        &client,
        "select pg_create_logical_replication_slot('reader', 'pgoutput');
         select pg_create_physical_replication_slot('forgotten', true)",
    )
    .await;
    let report = doctor.report().await;
    report.is(
        "publications",
        "warning",
        "1 logical slots of this database are not in use",
    );
    report.is("replication_slots", "warning", "slot reader (logical, ");
    report.is("replication_slots", "warning", "slot forgotten (physical)");

    execute(
        &client,
        "begin; insert into flows_v3 (flow_id, ts_epoch) values ('P', 0); prepare transaction 'lost'",
    )
    .await;
    doctor.report().await.is(
        "prepared_transactions",
        "warning",
        "'lost' of role postgres",
    );
    server.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_room_for_the_daemons_connections_is_found() {
    let settings = [
        ("max_connections", "20"),
        ("superuser_reserved_connections", "3"),
    ];
    let (server, database) = server_with(&settings).await;
    let doctor = Doctor::on(&database);
    doctor
        .report()
        .await
        .is("connections", "ok", "of 17 connections");
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(database.client().await);
    }
    doctor
        .report()
        .await
        .is("connections", "warning", "max_connections");
    // The last places are for superusers, as this role is.
    for _ in 0..11 {
        clients.push(database.client().await);
    }
    doctor
        .report()
        .await
        .is("connections", "problem", "max_connections");
    drop(clients);

    execute(
        &connect(&server.config("postgres")).await,
        &format!("alter database {} connection limit 4", database.name()),
    )
    .await;
    doctor
        .eventually(
            "connections",
            "warning",
            "the connection limit of the database",
        )
        .await;
    server.stop().await.expect("it stops");
}

/// Only since PostgreSQL 17, where the size of the queue can be set; before, it is 8 GB.
#[tokio::test(flavor = "multi_thread")]
async fn a_notification_queue_that_fills_up_is_a_problem() {
    if shared().await.major() < 17 {
        left_out("needs PostgreSQL 17 or later: max_notify_queue_pages");
        return;
    }
    let (server, database) = server_with(&[("max_notify_queue_pages", "64")]).await;
    let (client, sleeper) = (database.client().await, database.client().await);
    let doctor = Doctor::on(&database);
    doctor.report().await.is("notifications", "ok", "0 % full");
    execute(&sleeper, "listen elsewhere").await;
    execute(&sleeper, "begin; select 1").await;
    const FILL: &str =
        "select pg_notify('elsewhere', n || repeat('x', 7000)) from generate_series(1, 35) n";
    execute(&client, FILL).await;
    doctor
        .report()
        .await
        .is("notifications", "problem", "commits that notify fail");
    server.stop().await.expect("it stops");
}
