//! Configuration by the environment: which variables count, and that no secret is shown.

use std::collections::BTreeSet;

use clap::CommandFactory as _;
use status_indexer::cli::Cli;
use testkit::daemon::Launch;
use testkit::database::Database;

use super::cli::{run, text};

/// The variables of all flags of all commands.
fn variables(command: &clap::Command, names: &mut BTreeSet<String>) {
    let found = command.get_arguments().filter_map(clap::Arg::get_env);
    names.extend(found.map(|name| name.to_string_lossy().into_owned()));
    for command in command.get_subcommands() {
        variables(command, names);
    }
}

#[tokio::test]
async fn an_empty_variable_counts_as_unset() {
    let database = Database::fresh().await;
    let mut names = BTreeSet::new();
    variables(&Cli::command(), &mut names);
    // The only one that is needed.
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
async fn metrics_are_served_on_both_families_and_the_read_api_can_be_switched_off() {
    let database = Database::fresh().await;
    let daemon = Launch::on(&database)
        .args(&["run", "--migrate", "--metrics-listen", ":0"])
        .arg("--http-listen")
        .arg("off")
        .start()
        .await;
    let port = daemon.address().await.port();
    let mut hosts = vec!["127.0.0.1"];
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        hosts.push("[::1]");
    }
    for host in hosts {
        let url = format!("http://{host}:{port}/healthz");
        let client = reqwest::Client::builder().no_proxy().build();
        let answer = client.expect("a plain client").get(&url).send().await;
        assert_eq!(answer.expect("it answers").status(), 200, "{host}");
    }
    let log = daemon.log();
    assert!(log.iter().all(|line| line.get("http.addr").is_none()));
    assert!(daemon.terminate().await.success());
}

#[tokio::test]
async fn connection_parameters_work_as_a_connection_string_does() {
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
async fn a_boolean_variable_accepts_the_usual_words() {
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
        } else {
            daemon
                .logged("it does not migrate", |line| {
                    let error = line["error"].as_str().unwrap_or_default();
                    error.contains("run `status-indexer migrate up`")
                })
                .await;
        }
        assert!(daemon.terminate().await.success(), "{word}");
    }
}

#[tokio::test]
async fn no_help_and_no_log_contains_a_secret() {
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
                    ("STATUS_INDEXER_LISTEN_URL", dsn.as_str()),
                    ("STATUS_INDEXER_WAIT", "0"),
                    ("STATUS_INDEXER_LOG", "trace"),
                ];
                let message = text(&run(&database, args, &env).await);
                assert!(!message.contains(SECRET), "{variable} {args:?}: {message}");
            }
        }
    }
    let daemon = Launch::on(&database)
        .env("DATABASE_URL", &with_secret)
        .env("STATUS_INDEXER_LISTEN_URL", &with_secret)
        .env("STATUS_INDEXER_LOG", "trace")
        .start()
        .await;
    assert!(daemon.terminate().await.success());
    assert!(!format!("{:?}", daemon.log()).contains(SECRET));
}
