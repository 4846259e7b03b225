//! The help of every command, and what is refused as bad usage.
//!
//! The help is compared as a whole: accept a change with `INSTA_UPDATE=always`.

use std::process::Output;

use testkit::daemon::Launch;
use testkit::database::Database;

pub(super) async fn run(database: &Database, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut launch = Launch::on(database).args(args);
    for (name, value) in env {
        launch = launch.env(name, value);
    }
    launch.output().await
}

pub(super) fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[tokio::test]
async fn the_help_of_every_command_is_as_reviewed() {
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
        &["doctor"],
        &["completions"],
        &["man"],
    ] {
        let args: Vec<&str> = args.iter().chain(&["--help"]).copied().collect();
        let output = run(&database, &args, &[]).await;
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stderr.is_empty());
        let name = format!("help_{}", args[..args.len() - 1].join("_"));
        insta::assert_snapshot!(name.trim_end_matches('_'), text(&output));
    }
}

#[tokio::test]
async fn bad_usage_and_contradictions_exit_64_and_say_what_to_do() {
    let database = Database::empty().await;
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
            "for example 127.0.0.1:9487",
        ),
        (&["run", "--metrics-listen", "off"], &[], "--metrics-listen"),
        (&["run", "--http-listen", "8081"], &[], "or off"),
        (&["run", "--http-listen", ""], &[], "or off"),
        (&["run", "--max-connections", "0"], &[], "--max-connections"),
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
        let message = text(&output).replace("\\\"", "\"");
        assert_eq!(
            output.status.code(),
            Some(64),
            "{args:?} {env:?}: {message}"
        );
        assert!(message.contains(words), "{args:?} {env:?}: {message}");
    }
}

#[tokio::test]
async fn the_same_value_twice_is_not_a_contradiction() {
    let database = Database::empty().await;
    let output = run(
        &database,
        &["migrate", "status"],
        &[("MF_METADATA_DB_DSN", database.url())],
    )
    .await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
}
