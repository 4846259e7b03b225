//! Upstream's tables under other names, in other schemas, and with a column of another type.

use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::wait::eventually_eq;

use super::{
    SOON, check_works, dump, execute, migrate, migrate_as, number, role, same, succeeded, url_of,
};

struct Names {
    /// Statements that give upstream's tables these names.
    rename: &'static str,
    /// As a statement would quote them.
    runs: &'static str,
    metadata: &'static str,
    env: &'static [(&'static str, &'static str)],
}

const NAMES: [Names; 5] = [
    Names {
        rename: "alter table runs_v3 rename to runs_of_us; alter table metadata_v3 rename to metadata_of_us",
        runs: "runs_of_us",
        metadata: "metadata_of_us",
        env: &[("DB_TABLE_NAME_RUNS", "Runs_Of_US"), ("DB_TABLE_NAME_METADATA", "METADATA_of_us")],
    },
    Names {
        rename: "alter table runs_v3 rename to \"Runs V3\"; alter table metadata_v3 rename to \"Meta.Data\"",
        runs: "\"Runs V3\"",
        metadata: "\"Meta.Data\"",
        env: &[("DB_TABLE_NAME_RUNS", "\"Runs V3\""), ("DB_TABLE_NAME_METADATA", "public.\"Meta.Data\"")],
    },
    Names {
        rename: "create schema meta; create schema other; alter table runs_v3 set schema meta; alter table metadata_v3 set schema other",
        runs: "meta.runs_v3",
        metadata: "other.metadata_v3",
        env: &[("DB_TABLE_NAME_RUNS", "Meta.runs_v3"), ("DB_TABLE_NAME_METADATA", "other.METADATA_V3")],
    },
    Names {
        rename: "create schema \"Meta Flow\"; alter table runs_v3 set schema \"Meta Flow\"; alter table metadata_v3 set schema \"Meta Flow\";
                 create table runs_v3 (); create table metadata_v3 ()",
        runs: "\"Meta Flow\".runs_v3",
        metadata: "\"Meta Flow\".metadata_v3",
        env: &[("DB_SCHEMA_NAME", "Meta Flow")],
    },
    Names {
        rename: r#"create schema "a.b\n
            '{{runs}}' $1";
            alter table runs_v3 set schema "a.b\n
            '{{runs}}' $1"; alter table "a.b\n
            '{{runs}}' $1".runs_v3 rename to "r""u'n\s %s é流 {{metadata}} $1 --";
            alter table metadata_v3 rename to "{{ % -- /* ; ""x"" \ ' }}""#,
        runs: "\"a.b\\n\n            '{{runs}}' $1\".\"r\"\"u'n\\s %s é流 {{metadata}} $1 --\"",
        metadata: r#""{{ % -- /* ; ""x"" \ ' }}""#,
        env: &[
            ("DB_TABLE_NAME_RUNS", "\"a.b\\n\n            '{{runs}}' $1\".\"r\"\"u'n\\s %s é流 {{metadata}} $1 --\""),
            ("DB_TABLE_NAME_METADATA", r#""{{ % -- /* ; ""x"" \ ' }}""#),
        ],
    },
];

#[tokio::test]
async fn tables_of_any_name_are_found_indexed_and_restored() {
    for names in NAMES {
        let database = Database::fresh().await;
        let client = database.client().await;
        execute(&client, names.rename).await;
        let role = role(&database, "indexer").await;
        let before = dump(&database).await;
        let up = ["up", "--grant-to", role.as_str()];
        succeeded(&migrate_as(database.url(), &database, &up, names.env).await);
        let message =
            succeeded(&migrate_as(database.url(), &database, &["status"], names.env).await);
        assert!(
            message.contains("0013_running_index          applied"),
            "{message}"
        );
        check_works(&client, names.runs, names.metadata).await;

        let mut launch = Launch::on(&database)
            .args(&["run", "--metrics-listen", "127.0.0.1:0"])
            .env("DATABASE_URL", &url_of(&database, &role));
        for (name, value) in names.env {
            launch = launch.env(name, value);
        }
        let daemon = launch.start().await;
        let late = format!(
            "insert into {} (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
             values ('Works', 1, 'end', 1, 'attempt_ok', 'False', 'x', 2)",
            names.metadata
        );
        execute(&client, &late).await;
        let status = format!(
            "select (run_status = 'failed')::int::bigint from {}",
            names.runs
        );
        eventually_eq(SOON, "the daemon has written the status", 1, async || {
            number(&client, &status).await
        })
        .await;
        assert!(daemon.terminate().await.success());

        execute(
            &client,
            &format!(
                "delete from {}; delete from {}; delete from flows_v3",
                names.runs, names.metadata
            ),
        )
        .await;
        succeeded(&migrate_as(database.url(), &database, &["down"], names.env).await);
        same(&before, &dump(&database).await);
    }
}

#[tokio::test]
async fn values_of_a_jsonb_column_are_indexed() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let client = writer.client();
    execute(
        client,
        "alter table metadata_v3 alter column value type jsonb using to_jsonb(value)",
    )
    .await;
    let daemon = Launch::on(&database).start().await;
    writer.insert_flow("F").await;
    let now = writer.now_secs().await;
    let run = writer.insert_run("F", Some(now)).await;
    for (ts, value, status) in [
        (1, "\"False\"", "failed"),
        (2, "true", "completed"),
        (3, "[\"False\"]", "failed"),
        (4, "{}", "running"),
        (5, "1", "completed"),
        (6, "null", "running"),
        (7, "\"True\"", "completed"),
    ] {
        let insert = format!(
            "insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
             values ('F', {run}, 'end', 1, 'attempt_ok', '{value}', 'x', {ts})"
        );
        execute(client, &insert).await;
        eventually_eq(SOON, value, status.to_owned(), async || {
            writer.status("F", run).await
        })
        .await;
    }
    // Back to text while the daemon runs.
    execute(client, "delete from metadata_v3 where value = 'null'").await;
    execute(
        client,
        "alter table metadata_v3 alter column value type text using value #>> '{}'",
    )
    .await;
    writer.attempt_ok("F", run, "False", 8).await;
    eventually_eq(SOON, "text again", "failed".to_owned(), async || {
        writer.status("F", run).await
    })
    .await;
    assert!(daemon.terminate().await.success());
    succeeded(&migrate(&database, &["down"]).await);
}
