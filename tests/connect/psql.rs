//! A connection string means what it means to `psql`: the same strings, against the same servers.

use std::fmt::Write as _;

use status_indexer::error::chain;
use status_indexer::pg::{Connector, SessionProfile};
use testkit::database::connect;
use testkit::postgres::Postgres;

use super::server::{Certificates, set_rules, start};

/// Whether a string connects, and if so, whether the connection is encrypted.
type Outcome = Option<bool>;

const ENCRYPTED: &str = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";

/// Added to a string that connects.
const MORE: &[&str] = &[
    "",
    "connect_timeout=3",
    "connect_timeout=0",
    "connect_timeout=x",
    "keepalives=0",
    "keepalives_idle=20 keepalives_interval=5 keepalives_count=3",
    "keepalives_count=x",
    "tcp_user_timeout=8000",
    "tcp_user_timeout=8s",
    "target_session_attrs=any",
    "target_session_attrs=read-write",
    "target_session_attrs=read-only",
    "target_session_attrs=primary",
    "target_session_attrs=standby",
    "target_session_attrs=prefer-standby",
    "target_session_attrs=nosuch",
    "target_session_attrs=read-only options='-c default_transaction_read_only=on'",
    "target_session_attrs=read-write options='-c default_transaction_read_only=on'",
    "options='-c geqo=off'",
    "options='-c nosuch=off'",
    "application_name=x fallback_application_name=y",
    "client_encoding=utf8",
    "client_encoding=auto",
    "gssencmode=disable",
    "gssencmode=prefer",
    "channel_binding=disable",
    "channel_binding=prefer",
    "channel_binding=nosuch",
    "sslmode=disable",
    "sslmode=allow",
    "sslmode=prefer",
    "sslmode=require",
    "sslmode=nosuch",
    "sslcompression=0",
    "sslsni=0",
    "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
    "requiressl=1",
    "nosuch=1",
    "dbname=nosuch",
    "user=nosuch",
    "port=x",
    "port=0",
    "port=",
    "service=nosuch",
];

async fn psql(dsn: &str) -> (Outcome, String) {
    let output = tokio::process::Command::new("psql")
        .args(["-X", "-w", "-t", "-A", "-d", dsn, "-c", ENCRYPTED])
        .output()
        .await
        .expect("psql is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    let outcome = match text.trim() {
        "t" => Some(true),
        "f" => Some(false),
        _ => None,
    };
    (
        outcome,
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

async fn ours(dsn: &str) -> (Outcome, String) {
    let connector = match Connector::to(dsn) {
        Ok(connector) => connector,
        Err(error) => return (None, format!("{error:#}")),
    };
    match connector.connect(SessionProfile::Reader).await {
        Ok(client) => {
            let row = client.query_one(ENCRYPTED, &[]).await;
            (Some(row.expect("it is connected").get(0)), String::new())
        }
        Err(error) => (None, chain(&error)),
    }
}

/// Compares the outcome of each string, and reports all that differ.
async fn compare(dsns: &[String]) {
    let mut differences = String::new();
    let mut connected = 0;
    for dsn in dsns {
        let ((expected, theirs), (seen, ours)) = (psql(dsn).await, ours(dsn).await);
        connected += usize::from(expected.is_some());
        if seen != expected {
            writeln!(
                differences,
                "{dsn}\n  psql: {expected:?} {theirs}\n  ours: {seen:?} {ours}"
            )
            .expect("a string grows");
        }
    }
    assert!(differences.is_empty(), "{differences}");
    assert!(connected > 0, "not one string connects");
}

async fn execute(server: &Postgres, statements: &[&str]) {
    let client = connect(&server.config("postgres")).await;
    for statement in statements {
        client.batch_execute(statement).await.expect(statement);
    }
}

#[tokio::test]
async fn connection_strings_mean_what_they_mean_to_psql() {
    let server = start().await;
    execute(&server, &["create role app login password 'a?b#c%&=:d'"]).await;
    set_rules(
        &server,
        "host all app all scram-sha-256\nhost all all all trust\nlocal all all trust\n",
    )
    .await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let port = server.port();
    let file = |name: &str, content: String| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = directory.path().join(name);
        std::fs::write(&path, content).expect("writable");
        let permissions = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, permissions).expect("it is ours");
        path.display().to_string()
    };
    let passfile = file("pp", format!("127.0.0.1:{port}:*:app:a?b#c%&=\\:d\n"));
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let closed = closed
        .expect("a free port")
        .local_addr()
        .expect("it is bound")
        .port();
    let base = format!("host=127.0.0.1 port={port} dbname=postgres");
    let socket = server.directory().display().to_string();
    let encoded = socket.replace('/', "%2F");
    let trust = format!("{base} user=postgres");
    let app = format!("{base} user=app");
    let mut dsns = vec![
        format!("postgresql://app:a?b#c%25&=:d@127.0.0.1:{port}/postgres"),
        format!("postgresql://app:a?b#c%25&=:d@127.0.0.1:{port}/postgres?sslmode=require"),
        format!("postgresql://app:a%3Fb%23c%25%26%3D%3Ad@127.0.0.1:{port}/postgres"),
        format!("postgresql://app:wrong@127.0.0.1:{port}/postgres"),
        format!("postgresql://app@127.0.0.1:{port}/postgres?passfile={passfile}"),
        format!("postgres://postgres@127.0.0.1:{port}/postgres?ssl=true"),
        format!("postgres://postgres@127.0.0.1:{port}/postgres?ssl=false"),
        format!("postgres://postgres@127.0.0.1:{port}/postgres?application_name=a%20b&"),
        format!("postgres://postgres@127.0.0.1:{port}/postgres?application_name"),
        format!("postgres://postgres@127.0.0.1:{port}/postgres?application_name=a=b"),
        format!("postgres://postgres@127.0.0.1:{port}/postgres?application_name=%zz"),
        format!("postgres://postgres@[127.0.0.1]:{port}/postgres"),
        format!("postgres://postgres@[127.0.0.1:{port}/postgres"),
        format!("postgres://postgres@127.0.0.1:{closed},127.0.0.1:{port}/postgres"),
        format!("postgres://postgres@{encoded}:{port}/postgres?sslmode=require"),
        format!("postgres:///postgres?host={socket}&port={port}&user=postgres"),
        format!("host='{socket}' port={port} user=postgres dbname=postgres sslmode=verify-full"),
        format!("host = 127.0.0.1 port\t= {port} user=\npostgres dbname='post\\gres'"),
        format!("{app} password='a?b#c%&=:d'"),
        format!("{app} password=a?b#c%&\\=:d"),
        format!("{app} password='a?b#c%&=:d"),
        format!("{app} passfile={passfile}"),
        format!("{app} passfile={passfile}x"),
        format!("{trust} hostaddr=127.0.0.1"),
        format!("host=nosuch.invalid hostaddr=127.0.0.1 port={port} user=postgres"),
        format!("host=nosuch.invalid,127.0.0.1 port={port} user=postgres"),
        format!("host=a,127.0.0.1 hostaddr=127.0.0.1 port={port} user=postgres"),
        format!("host=127.0.0.1,127.0.0.1 port={closed},{port} user=postgres"),
        format!("host=127.0.0.1 port={closed},{port} user=postgres"),
        format!("host=127.0.0.1,127.0.0.1 port={port} user=nosuch"),
    ];
    dsns.extend(MORE.iter().map(|more| format!("{trust} {more}")));
    compare(&dsns).await;
    server.stop().await.expect("it stops");
}

#[tokio::test]
async fn sslmode_and_the_rules_of_pg_hba_decide_as_for_psql() {
    let certificates = Certificates::new();
    let server = start().await;
    execute(
        &server,
        &[
            "create database only_tls",
            "create database only_plain",
            "create role app login password 'secret'",
        ],
    )
    .await;
    certificates
        .openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -keyout s.key -out s.crt -subj /CN=localhost")
        .await;
    set_rules(
        &server,
        "hostssl only_tls all all trust\nhostnossl only_plain all all trust\n\
         host only_tls all all reject\nhost only_plain all all reject\n\
         host all app all scram-sha-256\nhost all all all trust\nlocal all all trust\n",
    )
    .await;
    certificates.install(&server, "s").await;
    let mut dsns = Vec::new();
    for mode in ["disable", "allow", "prefer", "require"] {
        for database in ["postgres", "only_tls", "only_plain"] {
            for user in [
                "user=postgres",
                "user=app password=secret",
                "user=app password=wrong",
            ] {
                dsns.push(format!(
                    "host=127.0.0.1 port={} dbname={database} sslmode={mode} {user}",
                    server.port()
                ));
            }
        }
        for binding in ["disable", "prefer", "require"] {
            dsns.push(format!(
                "host=127.0.0.1 port={} dbname=postgres user=app password=secret \
                 channel_binding={binding} sslmode={mode}",
                server.port()
            ));
        }
        for versions in [
            "ssl_max_protocol_version=TLSv1.2",
            "ssl_min_protocol_version=TLSv1.3",
        ] {
            dsns.push(format!(
                "host=127.0.0.1 port={} dbname=postgres user=postgres sslmode={mode} {versions}",
                server.port()
            ));
        }
    }
    compare(&dsns).await;
    server.stop().await.expect("it stops");
}

#[tokio::test]
async fn certificates_are_accepted_and_refused_as_by_psql() {
    const SELF_SIGNED: &str = "req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost";
    let all = Certificates::new();
    for args in [
        "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.crt -subj /CN=authority"
            .to_owned(),
        // As PostgreSQL's documentation makes them: an authority's form, and it is its own root.
        format!(
            "{SELF_SIGNED} -days 2 -addext subjectAltName=DNS:localhost -keyout self.key -out self.crt"
        ),
        format!("{SELF_SIGNED} -days 2 -keyout no_san.key -out no_san.crt"),
        format!(
            "{SELF_SIGNED} -days 2 -addext subjectAltName=DNS:elsewhere -keyout other_san.key -out other_san.crt"
        ),
        format!(
            "{SELF_SIGNED} -days 2 -addext subjectAltName=IP:127.0.0.1 -keyout ip.key -out ip.crt"
        ),
    ] {
        all.openssl(&args).await;
    }
    let san = "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n";
    std::fs::write(all.path("san"), san).expect("our own directory");
    let authority = "basicConstraints=critical,CA:TRUE\nsubjectAltName=DNS:localhost\n";
    std::fs::write(all.path("authority"), authority).expect("our own directory");
    for (name, extensions) in [
        ("signed", "-extfile san"),
        ("signed_authority", "-extfile authority"),
        // Without extensions: a certificate of version 1.
        ("version_1", ""),
    ] {
        let request = format!(
            "req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN=localhost"
        );
        all.openssl(&request).await;
        let sign = format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out {name}.crt {extensions}"
        );
        all.openssl(sign.trim_end()).await;
    }
    // `req -x509` refuses a time in the past.
    all.openssl(
        "req -newkey rsa:2048 -nodes -keyout expired.key -out expired.csr -subj /CN=localhost",
    )
    .await;
    all.openssl("x509 -req -in expired.csr -signkey expired.key -days -1 -extfile authority -out expired.crt")
        .await;
    // Of an authority, and by an authority that has expired.
    for (name, ca, days) in [
        ("expired_signed", "ca", -1),
        ("expired_authority", "old", 2),
    ] {
        if ca == "old" {
            all.openssl("req -newkey rsa:2048 -nodes -keyout old.key -out old.csr -subj /CN=old")
                .await;
            all.openssl(
                "x509 -req -in old.csr -signkey old.key -days -1 -extfile authority -out old.crt",
            )
            .await;
        }
        all.openssl(&format!(
            "req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN=localhost"
        ))
        .await;
        all.openssl(&format!(
            "x509 -req -in {name}.csr -CA {ca}.crt -CAkey {ca}.key -CAcreateserial -days {days} -extfile san -out {name}.crt"
        ))
        .await;
    }
    let server = start().await;
    let mut failures = Vec::new();
    for (name, root) in [
        ("signed", "ca"),
        ("signed", "self"),
        ("signed_authority", "ca"),
        ("version_1", "ca"),
        ("version_1", "self"),
        ("self", "self"),
        ("self", "ca"),
        ("no_san", "no_san"),
        ("other_san", "other_san"),
        ("ip", "ip"),
        ("expired", "expired"),
        ("expired_signed", "ca"),
        ("expired_authority", "old"),
    ] {
        all.install(&server, name).await;
        let root = all.path(&format!("{root}.crt"));
        let mut dsns = Vec::new();
        for host in ["localhost", "127.0.0.1"] {
            for mode in ["prefer", "require", "verify-ca", "verify-full"] {
                let base = format!(
                    "host={host} port={} dbname=postgres user=postgres sslmode={mode}",
                    server.port()
                );
                dsns.push(format!("{base} sslrootcert={}", root.display()));
                dsns.push(base);
            }
        }
        println!("certificate {name}, root {}", root.display());
        let compared = tokio::spawn(async move { compare(&dsns).await });
        failures.extend(compared.await.err().map(|_| name));
    }
    assert!(failures.is_empty(), "{failures:?} differ");
    server.stop().await.expect("it stops");
}

#[tokio::test]
async fn a_refused_certificate_says_what_to_change() {
    let all = Certificates::new();
    for name in ["one", "other"] {
        all.openssl(&format!(
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {name}.key -out {name}.crt"
        ))
        .await;
    }
    let server = start().await;
    all.install(&server, "one").await;
    for (host, root, advice) in [
        ("localhost", "other", "set sslrootcert to"),
        ("127.0.0.1", "one", "valid for localhost, not for 127.0.0.1"),
    ] {
        let (outcome, text) = ours(&format!(
            "host={host} port={} user=postgres sslmode=verify-full sslrootcert={}",
            server.port(),
            all.path(&format!("{root}.crt")).display()
        ))
        .await;
        assert_eq!(outcome, None);
        assert!(text.contains(advice), "{text}");
        assert!(!text.contains("CaUsedAsEndEntity"), "{text}");
    }
    server.stop().await.expect("it stops");
}

/// An authority, and certificates of clients that it signed or did not sign.
async fn client_certificates() -> Certificates {
    let all = Certificates::new();
    for args in [
        "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.crt -subj /CN=authority",
        "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout s.key -out s.crt -subj /CN=localhost",
        "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout stranger.key -out stranger.crt -subj /CN=app",
    ] {
        all.openssl(args).await;
    }
    for (name, subject, days) in [
        ("app", "app", 2),
        ("other", "other", 2),
        ("expired", "app", -1),
    ] {
        all.openssl(&format!(
            "req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={subject}"
        ))
        .await;
        all.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days {days} -out {name}.crt"
        ))
        .await;
    }
    all.openssl("rsa -aes256 -passout pass:x -in app.key -out locked.key")
        .await;
    for (copy, mode) in [("open", 0o644), ("group", 0o640)] {
        use std::os::unix::fs::PermissionsExt as _;
        let path = all.path(&format!("{copy}.key"));
        std::fs::copy(all.path("app.key"), &path).expect("openssl wrote it");
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&path, permissions).expect("our own file");
    }
    all
}

#[tokio::test]
async fn client_certificates_and_keys_are_used_as_by_psql() {
    let all = client_certificates().await;
    let server = start().await;
    execute(
        &server,
        &["create role app login", "create role other login"],
    )
    .await;
    set_rules(
        &server,
        "hostssl all app all cert\nhostssl all other all trust clientcert=verify-ca\n\
         host all postgres all trust\nlocal all all trust\n",
    )
    .await;
    let root = std::fs::read(all.path("ca.crt")).expect("openssl wrote it");
    super::server::install(&server, "root.crt", &root);
    server
        .configure(&[("ssl_ca_file", "root.crt")])
        .expect("its file is ours");
    all.install(&server, "s").await;
    let path = |name: &str| all.path(name).display().to_string();
    let mut dsns = Vec::new();
    for user in ["app", "other"] {
        for mode in ["disable", "prefer", "verify-full"] {
            let base = format!(
                "host=localhost port={} dbname=postgres user={user} sslmode={mode} sslrootcert={}",
                server.port(),
                path("s.crt")
            );
            dsns.push(base.clone());
            for (cert, key) in [
                ("app.crt", "app.key"),
                ("other.crt", "other.key"),
                ("stranger.crt", "stranger.key"),
                ("expired.crt", "expired.key"),
                ("app.crt", "other.key"),
                ("app.crt", "locked.key"),
                ("app.crt", "open.key"),
                ("app.crt", "group.key"),
                ("app.crt", "nosuch"),
                ("app.key", "app.key"),
            ] {
                dsns.push(format!(
                    "{base} sslcert={} sslkey={}",
                    path(cert),
                    path(key)
                ));
            }
            dsns.push(format!("{base} sslcert={}", path("app.crt")));
        }
    }
    compare(&dsns).await;
    server.stop().await.expect("it stops");
}

/// The major version of `psql`, which is that of its libpq.
async fn psql_version() -> u32 {
    let output = tokio::process::Command::new("psql")
        .arg("--version")
        .output()
        .await;
    let text = output.expect("psql is installed").stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    let number = text.split([' ', '.']).find_map(|word| word.parse().ok());
    number.expect("psql prints its version")
}

#[tokio::test]
async fn the_authorities_of_the_system_verify_the_host_name_as_by_psql() {
    let all = Certificates::new();
    all.openssl(
        "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.crt -subj /CN=authority",
    )
    .await;
    let extensions = "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n";
    std::fs::write(all.path("extensions"), extensions).expect("our own directory");
    all.openssl("req -newkey rsa:2048 -nodes -keyout s.key -out s.csr -subj /CN=localhost")
        .await;
    all.openssl(
        "x509 -req -in s.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out s.crt",
    )
    .await;
    let server = start().await;
    all.install(&server, "s").await;
    let has_system = psql_version().await >= 16;
    if !has_system {
        testkit::requirement::left_out("the comparison needs psql 16 or later: sslrootcert=system");
    }
    let authority = all.path("ca.crt").display().to_string();
    for (host, mode, trusted, connects) in [
        ("localhost", "", true, true),
        ("localhost", "sslmode=verify-full", true, true),
        ("localhost", "sslmode=verify-full", false, false),
        ("127.0.0.1", "sslmode=verify-full", true, false),
        // Any authority of the system would do for any host.
        ("localhost", "sslmode=verify-ca", true, false),
        ("localhost", "sslmode=require", true, false),
    ] {
        let dsn = format!(
            "host={host} port={} user=postgres dbname=postgres sslrootcert=system {mode}",
            server.port()
        );
        // The system's authorities are read once by a process, so each case has a process of its own.
        let mut ours = testkit::product::command();
        ours.args(["migrate", "status"]).env("DATABASE_URL", &dsn);
        let mut theirs = tokio::process::Command::new("psql");
        theirs.args(["-X", "-w", "-d", &dsn, "-c", ENCRYPTED]);
        if trusted {
            ours.env("SSL_CERT_FILE", &authority);
            theirs.env("SSL_CERT_FILE", &authority);
        }
        let output = ours.output().await.expect("the binary can be executed");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        // Connected, it finds no tables.
        assert_eq!(
            text.contains("runs_v3 does not exist"),
            connects,
            "{dsn}: {text}"
        );
        if has_system {
            let output = theirs.output().await.expect("psql is installed");
            assert_eq!(output.status.success(), connects, "{dsn}: {output:?}");
        }
    }
    server.stop().await.expect("it stops");
}
