//! `migrate down`: removes all of the indexer's objects, and changes nothing else.

use testkit::database::Database;

use super::{
    check_complete, dump, execute, migrate, migrate_as, number, owner, refused, role, same,
    succeeded, url_of,
};

#[tokio::test]
async fn down_leaves_the_database_as_it_was_before_up() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let app = owner(&database).await;
    let (fresh, reader) = (
        role(&database, "fresh").await,
        role(&database, "reader").await,
    );
    execute(&client, &format!("grant select on runs_v3 to {reader}")).await;
    let url = url_of(&database, &app);
    let make_schema = format!(
        "create schema status_indexer authorization {app};
         comment on schema status_indexer is 'made by hand';
         grant usage on schema status_indexer to {reader}"
    );
    let allow = format!("grant create on database {} to {app}", database.name());
    for setup in [allow.as_str(), make_schema.as_str()] {
        execute(&client, setup).await;
        for grantees in [
            &[][..],
            &[&fresh],
            &[&reader],
            &[&fresh, &reader],
            &[&app],
            &[&fresh, &fresh],
        ] {
            let before = dump(&database).await;
            succeeded(&migrate_as(&url, &database, &["up"], &[]).await);
            for grantee in grantees {
                let up = ["up", "--grant-to", grantee.as_str()];
                succeeded(&migrate_as(&url, &database, &up, &[]).await);
            }
            check_complete(&database).await;
            execute(&client, "truncate flows_v3, metadata_v3 cascade").await;
            succeeded(&migrate_as(&url, &database, &["down"], &[]).await);
            same(&before, &dump(&database).await);
            let may = |role: &str| {
                format!("select has_table_privilege('{role}', 'runs_v3', 'select')::int::bigint")
            };
            assert_eq!(
                number(&client, &may(&app)).await,
                1,
                "an owner keeps its privileges"
            );
            assert_eq!(number(&client, &may(&reader)).await, 1);
            assert_eq!(number(&client, &may(&fresh)).await, 0);
        }
    }
    succeeded(&migrate_as(&url, &database, &["down"], &[]).await);
}

#[tokio::test]
async fn down_keeps_objects_that_depend_on_the_schema_and_can_be_completed_later() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let before = dump(&database).await;
    succeeded(&migrate(&database, &["up"]).await);
    execute(
        &client,
        "create view public.mine as select * from status_indexer.run_status",
    )
    .await;
    let message = refused(&migrate(&database, &["down"]).await, 1);
    assert!(message.contains("view public.mine depends on"), "{message}");
    // The triggers are dropped already, so the column is not valid.
    let valid = "select count(*) from status_indexer.state where valid_since is not null";
    assert_eq!(number(&client, valid).await, 0);
    execute(&client, "drop view mine").await;
    succeeded(&migrate(&database, &["down"]).await);
    same(&before, &dump(&database).await);
}
