//! The command line: its help, its exit codes, what it takes from the environment, and what it
//! never says. The help is compared as a whole: accept a change with `INSTA_UPDATE=always`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Output;

use clap::CommandFactory as _;
use status_indexer::cli::Cli;
use testkit::postgres::{Options, Postgres};

use testkit::daemon::Launch;
use testkit::database::Database;

async fn run(database: &Database, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut launch = Launch::on(database).args(args);
    for (name, value) in env {
        launch = launch.env(name, value);
    }
    launch.output().await
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[tokio::test]
async fn help_of_every_command_is_as_reviewed() {
    let database = Database::empty().await;
    for args in [
        &[][..],
        &["migrate"],
        &["migrate", "up"],
        &["migrate", "down"],
        &["migrate", "status"],
        &["run"],
        &["backfill"],
        &["verify"],
        &["explain"],
    ] {
        let args: Vec<&str> = args.iter().chain(&["--help"]).copied().collect();
        let output = run(&database, &args, &[]).await;
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stderr.is_empty());
        let name = format!("help_{}", args[..args.len() - 1].join("_"));
        insta::assert_snapshot!(name.trim_end_matches('_'), text(&output));
    }
    let output = run(&database, &["--version"], &[]).await;
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        text(&output),
        format!("status-indexer {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[tokio::test]
async fn bad_usage_and_contradictions_exit_64_with_what_to_do() {
    let database = Database::empty().await;
    let url = database.url();
    for (args, env, words) in [
        (&[][..], &[][..], "Usage: status-indexer"),
        (&["nonsense"], &[], "unrecognized subcommand"),
        (&["run", "--nonsense"], &[], "unexpected argument"),
        (&["explain", "F"], &[], "<RUN>"),
        (&["explain"], &[], "<FLOW>"),
        (&["run", "extra"], &[], "unexpected argument"),
        (&["migrate", "sideways"], &[], "sideways"),
        (&["run", "--cutoff", "x"], &[], "--cutoff"),
        (&["run", "--cutoff=-1"], &[], "--cutoff"),
        (
            &["run"],
            &[("RUN_INACTIVE_CUTOFF_TIME", "6 minutes")],
            "--cutoff",
        ),
        (
            &["run"],
            &[("RUN_INACTIVE_CUTOFF_TIME", "999999999999")],
            "--cutoff",
        ),
        (&["run", "--pool-max", "1"], &[], "--pool-max"),
        (
            &["run"],
            &[("STATUS_INDEXER_METRICS_LISTEN", "here")],
            "--metrics-listen",
        ),
        (
            &["run"],
            &[("STATUS_INDEXER_SESSION_MODE", "telepathy")],
            "--session-mode",
        ),
        (
            &["run"],
            &[("STATUS_INDEXER_MIGRATE", "perhaps")],
            "--migrate",
        ),
        (
            &["run"],
            &[("STATUS_INDEXER_LOG", "status_indexer=loud")],
            "log filter",
        ),
        (&["run", "--log-format", "xml"], &[], "--log-format"),
        (
            &["migrate"],
            &[("DATABASE_URL", ""), ("MF_METADATA_DB_PORT", "many")],
            "MF_METADATA_DB_PORT",
        ),
        (
            &["migrate"],
            &[("DATABASE_URL", ""), ("MF_METADATA_DB_TIMEOUT", "1.5")],
            "MF_METADATA_DB_TIMEOUT",
        ),
        (
            &["migrate"],
            &[("MF_METADATA_DB_DSN", "postgres://elsewhere/x")],
            "unset one",
        ),
        (
            &["migrate"],
            &[("DATABASE_URL", "host=a port")],
            "connection string",
        ),
        (
            &["migrate"],
            &[("DATABASE_URL", "host=a sslmode=maybe")],
            "sslmode",
        ),
        (
            &["run"],
            &[("DATABASE_URL", "host=a sslmode=require sslcert=/x")],
            "sslkey",
        ),
        (
            &["explain", "F", "1"],
            &[(
                "DATABASE_URL",
                "host=a sslmode=verify-ca sslrootcert=/nosuch",
            )],
            "/nosuch",
        ),
    ] {
        let output = run(&database, args, env).await;
        let said = text(&output).replace("\\\"", "\"");
        assert_eq!(output.status.code(), Some(64), "{args:?} {env:?}: {said}");
        assert!(said.contains(words), "{args:?} {env:?}: {said}");
    }
    // The same twice is no contradiction.
    let output = run(
        &database,
        &["migrate", "status"],
        &[("MF_METADATA_DB_DSN", url)],
    )
    .await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
}

/// The variables of all flags of all commands.
fn variables(command: &clap::Command, names: &mut BTreeSet<String>) {
    let found = command.get_arguments().filter_map(clap::Arg::get_env);
    names.extend(found.map(|name| name.to_string_lossy().into_owned()));
    for command in command.get_subcommands() {
        variables(command, names);
    }
}

#[tokio::test]
async fn an_empty_variable_is_none() {
    let database = Database::fresh().await;
    let mut names = BTreeSet::new();
    variables(&Cli::command(), &mut names);
    // The one that says where the database is.
    assert!(names.remove("DATABASE_URL"));
    assert!(names.contains("RUN_INACTIVE_CUTOFF_TIME") && names.contains("MF_METADATA_DB_PORT"));
    let env: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    for args in [
        &["migrate"][..],
        &["migrate", "status"],
        &["migrate", "down"],
        &["migrate"],
    ] {
        let output = run(&database, args, &env).await;
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output));
    }
    let mut launch = Launch::on(&database).args(&["run", "--metrics-listen", "127.0.0.1:0"]);
    for (name, value) in &env {
        launch = launch.env(name, value);
    }
    assert!(launch.start().await.terminate().await.success());
}

#[tokio::test]
async fn parts_reach_the_database_as_a_connection_string_does() {
    let database = Database::fresh().await;
    let config = database.config();
    let port = config.get_ports()[0].to_string();
    let parts = [
        ("DATABASE_URL", ""),
        ("MF_METADATA_DB_HOST", "127.0.0.1"),
        ("MF_METADATA_DB_PORT", &port),
        ("MF_METADATA_DB_USER", "postgres"),
        ("MF_METADATA_DB_PSWD", "p@ss:/?#[]' \\%20"),
        ("MF_METADATA_DB_NAME", database.name()),
    ];
    let output = run(&database, &["migrate"], &parts).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let pairs = format!(
        "host=127.0.0.1 port={port} user=postgres dbname='{}' sslmode=prefer",
        database.name()
    );
    for variable in ["DATABASE_URL", "MF_METADATA_DB_DSN"] {
        let env = [("DATABASE_URL", ""), (variable, pairs.as_str())];
        let output = run(&database, &["migrate", "status"], &env).await;
        assert_eq!(
            output.status.code(),
            Some(0),
            "{variable}: {}",
            text(&output)
        );
    }
}

#[tokio::test]
async fn a_switch_in_the_environment_takes_the_usual_words() {
    for (word, migrates) in [
        ("1", true),
        ("true", true),
        ("yes", true),
        ("0", false),
        ("false", false),
    ] {
        let database = Database::fresh().await;
        let daemon = Launch::on(&database)
            .args(&["run", "--metrics-listen", "127.0.0.1:0"])
            .env("STATUS_INDEXER_MIGRATE", word)
            .spawn();
        if migrates {
            daemon.ready().await;
            assert!(daemon.terminate().await.success(), "{word}");
        } else {
            assert_eq!(daemon.exit().await.code(), Some(1), "{word}");
            let said = format!("{:?}", daemon.log());
            assert!(said.contains("run `status-indexer migrate up`"), "{said}");
        }
    }
}

#[tokio::test]
async fn secrets_are_in_no_help_and_no_log() {
    const SECRET: &str = "s3cr3t-phrase";
    let database = Database::fresh().await;
    let address = database.config().get_ports()[0];
    let with_secret = format!(
        "postgresql://postgres:{SECRET}@127.0.0.1:{address}/{}",
        database.name()
    );
    let wrong_port = format!("postgresql://postgres:{SECRET}@127.0.0.1:1/x");
    let no_database =
        format!("host=127.0.0.1 port={address} user=postgres password={SECRET} dbname=nosuch");
    let malformed = format!("postgresql://postgres:{SECRET}@127.0.0.1:port/x?{SECRET}");
    let unknown = format!("host=127.0.0.1 password='{SECRET}' nosuch={SECRET}");
    let unclosed = format!("host=127.0.0.1 password='{SECRET}");
    for dsn in [
        &with_secret,
        &wrong_port,
        &no_database,
        &malformed,
        &unknown,
        &unclosed,
    ] {
        for variable in ["DATABASE_URL", "MF_METADATA_DB_DSN"] {
            for args in [
                &["--help"][..],
                &["migrate", "--help"],
                &["run", "--help"],
                &["migrate", "up"],
                &["explain", "F", "1"],
                &["run", "--nonsense"],
            ] {
                let env = [
                    ("DATABASE_URL", ""),
                    (variable, dsn.as_str()),
                    ("MF_METADATA_DB_PSWD", SECRET),
                    ("STATUS_INDEXER_LOG", "trace"),
                ];
                let said = text(&run(&database, args, &env).await);
                assert!(!said.contains(SECRET), "{variable} {args:?}: {said}");
            }
        }
    }
    let daemon = Launch::on(&database)
        .env("DATABASE_URL", &with_secret)
        .env("STATUS_INDEXER_LOG", "trace")
        .start()
        .await;
    assert!(daemon.terminate().await.success());
    assert!(!format!("{:?}", daemon.log()).contains(SECRET));
}

// --- TLS

/// Certificates of an authority of our own, for a server named `localhost`.
struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    async fn make() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let made = Self { directory };
        made.openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.crt -subj /CN=authority")
            .await;
        made.openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -keyout other.key -out other.crt -subj /CN=stranger")
            .await;
        made.openssl(
            "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost",
        )
        .await;
        fs::write(
            made.path("ext"),
            "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n",
        )
        .expect("our own directory");
        made.openssl("x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.crt")
            .await;
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn openssl(&self, args: &str) {
        let output = tokio::process::Command::new("openssl")
            .args(args.split(' '))
            .current_dir(self.directory.path())
            .output()
            .await
            .expect("openssl is installed");
        assert!(output.status.success(), "{args}: {}", text(&output));
    }

    /// Puts certificate and key where the server may read them and nobody else the key.
    fn install(&self, server: &Postgres) {
        let data = server.directory().join("data");
        let owner = fs::metadata(&data).expect("the server has data");
        for name in ["server.crt", "server.key"] {
            let target = data.join(name);
            fs::copy(self.path(name), &target).expect("the server's directory is ours to fill");
            fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).expect("it is ours");
            chown(&target, Some(owner.uid()), Some(owner.gid())).expect("it is ours");
        }
    }
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
async fn tls_is_taken_demanded_and_verified_as_the_mode_says() {
    let certificates = Certificates::make().await;
    let server = Postgres::start(Options::default())
        .await
        .expect("a server of our own");
    certificates.install(&server);
    server
        .configure(&[("ssl", "on")])
        .expect("its file is ours");
    server.restart().await.expect("it starts with TLS");
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
            Some("not valid for name"),
        ),
        (
            "localhost",
            format!("sslmode=verify-full {others}"),
            Some("UnknownIssuer"),
        ),
        (
            "localhost",
            format!("sslmode=verify-ca {others}"),
            Some("UnknownIssuer"),
        ),
        (
            "localhost",
            format!("sslmode=require {others}"),
            Some("UnknownIssuer"),
        ),
        // The system does not know our authority.
        ("localhost", "sslmode=verify-full".to_owned(), Some("")),
    ] {
        let output = status_over(&database, host, &parameters).await;
        let said = text(&output);
        match refusal {
            None => assert_eq!(output.status.code(), Some(0), "{host} {parameters}: {said}"),
            Some(words) => {
                assert!(!output.status.success(), "{host} {parameters}: {said}");
                assert!(said.contains(words), "{host} {parameters}: {said}");
            }
        }
    }

    // With the parts that the metadata service takes, and for the whole daemon.
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
async fn a_server_without_tls_is_refused_where_tls_is_demanded() {
    let database = Database::fresh().await;
    for mode in ["require", "verify-ca", "verify-full"] {
        let output = status_over(&database, "127.0.0.1", &format!("sslmode={mode}")).await;
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{mode}: {said}");
        assert!(
            said.contains("server does not support TLS"),
            "{mode}: {said}"
        );
    }
    let output = status_over(&database, "127.0.0.1", "sslmode=prefer").await;
    assert!(text(&output).contains("not installed"), "{}", text(&output));
}
