//! The objects belong to the owner of the tables, whichever of its members installed them.

use testkit::database::Database;

use super::{
    check_complete, check_works, client_of, dump, execute, migrate, migrate_as, number, owner,
    refused, role, same, succeeded, url_of,
};

/// Objects in the schema that do not belong to a role.
fn not_owned_by(role: &str) -> String {
    format!(
        "select (select count(*) from pg_class
                  where relnamespace = 'status_indexer'::regnamespace and relowner <> '{role}'::regrole)
              + (select count(*) from pg_proc
                  where pronamespace = 'status_indexer'::regnamespace and proowner <> '{role}'::regrole)
              + (select count(*) from pg_namespace
                  where nspname = 'status_indexer' and nspowner <> '{role}'::regrole)"
    )
}

#[tokio::test]
async fn every_member_of_the_owning_role_can_go_on_after_another_has_left() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let app = owner(&database).await;
    let (alice, bob) = (role(&database, "alice").await, role(&database, "bob").await);
    let indexer = role(&database, "indexer").await;
    let members = format!("grant {app} to {alice}; grant {app} to {bob}");
    execute(&client, &members).await;
    execute(
        &client,
        &format!("grant create on database {} to {app}", database.name()),
    )
    .await;
    let before = dump(&database).await;
    let migrate_by = async |role: &str, args: &[&str]| {
        migrate_as(&url_of(&database, role), &database, args, &[]).await
    };
    succeeded(&migrate_by(&alice, &["up"]).await);
    assert_eq!(number(&client, &not_owned_by(&app)).await, 0);
    succeeded(&migrate_by(&bob, &["status"]).await);
    succeeded(&migrate_by(&bob, &["up"]).await);
    succeeded(&migrate_by(&bob, &["up", "--grant-to", &indexer]).await);
    succeeded(&migrate_by(&app, &["status"]).await);

    execute(
        &client_of(&database, &alice).await,
        &format!("drop owned by {alice}"),
    )
    .await;
    execute(&client, &format!("drop role {alice}")).await;
    check_complete(&database).await;
    execute(&client, "truncate flows_v3, metadata_v3 cascade").await;
    succeeded(&migrate_by(&bob, &["down"]).await);
    same(&before, &dump(&database).await);

    // A superuser installs for the owner too, and the owner removes it.
    succeeded(&migrate(&database, &["up"]).await);
    assert_eq!(number(&client, &not_owned_by(&app)).await, 0);
    succeeded(&migrate_by(&app, &["down"]).await);
    same(&before, &dump(&database).await);
}

#[tokio::test]
async fn the_owner_or_the_member_needs_create_on_the_database() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let app = owner(&database).await;
    let alice = role(&database, "alice").await;
    execute(&client, &format!("grant {app} to {alice}")).await;
    let url = url_of(&database, &alice);
    let before = dump(&database).await;
    let message = refused(&migrate_as(&url, &database, &["up"], &[]).await, 1);
    assert!(
        message.contains(&format!(
            "grant CREATE on the database to {app}, the owner of the tables, or to {alice}"
        )),
        "{message}"
    );
    assert!(
        message.contains("create schema status_indexer authorization"),
        "{message}"
    );
    same(&before, &dump(&database).await);
    execute(
        &client,
        &format!("grant create on database {} to {alice}", database.name()),
    )
    .await;
    succeeded(&migrate_as(&url, &database, &["up"], &[]).await);
    assert_eq!(number(&client, &not_owned_by(&app)).await, 0);
    check_works(&client, "runs_v3", "metadata_v3").await;
    execute(&client, "truncate flows_v3, metadata_v3 cascade").await;
    succeeded(&migrate_as(&url_of(&database, &app), &database, &["down"], &[]).await);
}

#[tokio::test]
async fn tables_of_two_owners_are_refused_before_anything_is_created() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (app, other) = (owner(&database).await, role(&database, "other").await);
    execute(
        &client,
        &format!("alter table metadata_v3 owner to {other}"),
    )
    .await;
    let before = dump(&database).await;
    let message = refused(&migrate(&database, &["up"]).await, 1);
    assert!(
        message.contains(&format!("\"public\".\"runs_v3\" belongs to {app}, but")),
        "{message}"
    );
    assert!(
        message.contains(&format!("belongs to {other}")),
        "{message}"
    );
    same(&before, &dump(&database).await);
}

#[tokio::test]
async fn tables_that_were_given_another_owner_later_are_refused_with_both_names() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let (app, other) = (owner(&database).await, role(&database, "other").await);
    succeeded(&migrate(&database, &["up"]).await);
    let give =
        format!("alter table runs_v3 owner to {other}; alter table metadata_v3 owner to {other}");
    execute(&client, &give).await;
    for direction in ["up", "down"] {
        let output = migrate_as(&url_of(&database, &other), &database, &[direction], &[]).await;
        let message = refused(&output, 1);
        assert!(
            message.contains(&format!(
                "the tables belong to {other}, but the indexer's objects belong to {app}"
            )),
            "{message}"
        );
    }
    succeeded(&migrate(&database, &["down"]).await);
    succeeded(&migrate(&database, &["up"]).await);
    assert_eq!(number(&client, &not_owned_by(&other)).await, 0);
}
