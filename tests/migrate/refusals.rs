//! What `migrate` refuses, with the reason, before it changes anything.

use testkit::database::Database;

use super::{check_complete, dump, execute, migrate, migrate_as, refused, same, succeeded};

/// The direction, the environment, the exit code, and a part of the reason.
type Refusal = (
    &'static [&'static str],
    &'static [(&'static str, &'static str)],
    i32,
    &'static str,
);

const REFUSALS: [Refusal; 11] = [
    (
        &["up"],
        &[("DB_TABLE_NAME_RUNS", "nosuch")],
        1,
        "the table nosuch does not exist",
    ),
    (
        &["down"],
        &[("DB_TABLE_NAME_METADATA", "public.nosuch")],
        1,
        "DB_TABLE_NAME_METADATA",
    ),
    // Since PostgreSQL 16 a malformed name is one that does not exist.
    (
        &["up"],
        &[("DB_TABLE_NAME_RUNS", "no such")],
        1,
        "DB_TABLE_NAME_RUNS",
    ),
    (
        &["up"],
        &[("DB_TABLE_NAME_RUNS", "a.b.c.d")],
        1,
        "DB_TABLE_NAME_RUNS",
    ),
    (
        &["up"],
        &[("DB_TABLE_NAME_RUNS", "otherdb.public.runs_v3")],
        1,
        "DB_TABLE_NAME_RUNS",
    ),
    (
        &["up"],
        &[("DB_SCHEMA_NAME", "nosuch")],
        1,
        "DB_SCHEMA_NAME",
    ),
    (
        &["status"],
        &[("DB_SCHEMA_NAME", "nosuch")],
        1,
        "DB_SCHEMA_NAME",
    ),
    (
        &["up"],
        &[("DB_TABLE_NAME_RUNS", "a_view")],
        1,
        "is not an ordinary table",
    ),
    (
        &["up"],
        &[("DB_TABLE_NAME_RUNS", "\"do$$llar\"")],
        1,
        "contains $$",
    ),
    (
        &["up"],
        &[("RUN_INACTIVE_CUTOFF_TIME", "0")],
        64,
        "--cutoff",
    ),
    (
        &["down", "--grant-to", "x"],
        &[],
        64,
        "--grant-to is an option of `migrate up`",
    ),
];

#[tokio::test]
async fn invalid_requests_are_refused_with_a_reason_and_change_nothing() {
    let database = Database::fresh().await;
    let client = database.client().await;
    execute(
        &client,
        "create view a_view as select * from runs_v3; create table \"do$$llar\" ()",
    )
    .await;
    let before = dump(&database).await;
    for (args, env, code, words) in REFUSALS {
        let output = migrate_as(database.url(), &database, args, env).await;
        let message = refused(&output, code);
        assert!(message.contains(words), "{args:?} {env:?}: {message}");
    }
    same(&before, &dump(&database).await);

    let message = refused(
        &migrate(&database, &["up", "--grant-to", "no one"]).await,
        1,
    );
    assert!(
        message.contains("the role no one does not exist: create it first"),
        "{message}"
    );
    check_complete(&database).await;

    let elsewhere = [("DB_TABLE_NAME_RUNS", "flows_v3")];
    for args in [["up"], ["down"]] {
        let message = refused(
            &migrate_as(database.url(), &database, &args, &elsewhere).await,
            1,
        );
        assert!(
            message.contains("is installed for \"public\".\"runs_v3\""),
            "{message}"
        );
    }
    let future = "insert into status_indexer.schema_history (version, name) values (999, 'future')";
    execute(&client, future).await;
    let message = refused(&migrate(&database, &["up"]).await, 1);
    assert!(message.contains("use the newer binary"), "{message}");
}

#[tokio::test]
async fn an_existing_column_of_the_same_name_is_neither_used_nor_dropped() {
    let database = Database::fresh().await;
    let client = database.client().await;
    execute(
        &client,
        "alter table runs_v3 add column run_status text default 'mine'",
    )
    .await;
    let before = dump(&database).await;
    let message = refused(&migrate(&database, &["up"]).await, 1);
    assert!(
        message.contains(
            "already has a column run_status or run_finished_at that the indexer did not create"
        ),
        "{message}"
    );
    same(&before, &dump(&database).await);
    succeeded(&migrate(&database, &["down"]).await);
    same(&before, &dump(&database).await);
}
