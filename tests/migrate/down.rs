//! `migrate down`: removes all of the indexer's objects, and changes nothing else.

use testkit::database::Database;

use super::{
    check_complete, dump, execute, migrate_as, number, owner, role, same, succeeded, url_of,
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
