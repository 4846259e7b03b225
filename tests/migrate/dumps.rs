//! A role that dumps the whole database, before and after the indexer is installed.

use testkit::database::Database;

use super::{
    dump, execute, migrate, migrate_as, owner, pg_dump, role, same, succeeded, text, url_of,
};

/// Whether the role can dump the database.
async fn can_dump(database: &Database, role: &str) -> bool {
    let url = url_of(database, role);
    let output = pg_dump(&["--dbname", &url])
        .await
        .expect("each test begins with a check for the program");
    if !output.status.success() {
        assert!(
            text(&output).contains("permission denied"),
            "{}",
            text(&output)
        );
    }
    output.status.success()
}

/// A login role that can read everything in the schema `public`.
async fn backup_role(database: &Database, name: &str) -> String {
    let role = role(database, name).await;
    let client = database.client().await;
    execute(
        &client,
        &format!(
            "grant usage on schema public to {role};
             grant select on all tables in schema public to {role};
             grant select on all sequences in schema public to {role}"
        ),
    )
    .await;
    role
}

#[tokio::test]
async fn up_names_the_roles_that_could_dump_the_database_and_the_flag_that_lets_them() {
    if pg_dump(&["--version"]).await.is_none() {
        return;
    }
    let database = Database::fresh().await;
    let client = database.client().await;
    let backup = backup_role(&database, "backup").await;
    let second = backup_role(&database, "second").await;
    let reader = role(&database, "reader").await;
    execute(
        &client,
        &format!("grant select on runs_v3, metadata_v3 to {reader}"),
    )
    .await;
    assert!(can_dump(&database, &backup).await);
    let before = dump(&database).await;

    let message = succeeded(&migrate(&database, &["up"]).await);
    assert!(message.contains("--grant-dump-to"), "{message}");
    assert!(
        message.contains(&format!("{backup}, {second}")),
        "{message}"
    );
    assert!(!message.contains(&reader), "{message}");
    assert!(!can_dump(&database, &backup).await);

    let grant = ["up", "--grant-dump-to", &backup, "--grant-dump-to", &second];
    let message = succeeded(&migrate(&database, &grant).await);
    assert!(
        !message.contains("a dump by one of them fails"),
        "{message}"
    );
    assert!(can_dump(&database, &backup).await);
    assert!(can_dump(&database, &second).await);
    let message = succeeded(&migrate(&database, &["up"]).await);
    assert!(
        !message.contains("a dump by one of them fails"),
        "{message}"
    );

    succeeded(&migrate(&database, &["down"]).await);
    same(&before, &dump(&database).await);
    let both = format!("{backup},{second}");
    let env = [("STATUS_INDEXER_GRANT_DUMP_TO", both.as_str())];
    succeeded(&migrate_as(database.url(), &database, &["up"], &env).await);
    assert!(can_dump(&database, &second).await);
}

#[tokio::test]
async fn down_revokes_the_grants_for_dumps_on_a_schema_that_an_operator_created() {
    if pg_dump(&["--version"]).await.is_none() {
        return;
    }
    let database = Database::fresh().await;
    let client = database.client().await;
    let app = owner(&database).await;
    let backup = backup_role(&database, "backup").await;
    let create = format!("create schema status_indexer authorization {app}");
    execute(&client, &create).await;
    let before = dump(&database).await;
    let up = ["up", "--grant-dump-to", &backup];
    succeeded(&migrate_as(&url_of(&database, &app), &database, &up, &[]).await);
    assert!(can_dump(&database, &backup).await);
    succeeded(&migrate_as(&url_of(&database, &app), &database, &["down"], &[]).await);
    same(&before, &dump(&database).await);
}

#[tokio::test]
async fn roles_that_read_all_data_are_not_named() {
    if pg_dump(&["--version"]).await.is_none() {
        return;
    }
    if testkit::database::shared().await.major() < 14 {
        println!("pg_read_all_data exists since PostgreSQL 14");
        return;
    }
    let database = Database::fresh().await;
    let auditor = role(&database, "auditor").await;
    let grant = format!("grant pg_read_all_data to {auditor}");
    execute(&database.client().await, &grant).await;
    let message = succeeded(&migrate(&database, &["up"]).await);
    assert!(!message.contains("--grant-dump-to"), "{message}");
    assert!(can_dump(&database, &auditor).await);
}
