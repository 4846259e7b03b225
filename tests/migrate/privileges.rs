//! The roles that migrate, and the role that the daemon runs as.

use testkit::daemon::Launch;
use testkit::database::{Database, connect};
use testkit::wait::eventually_eq;
use tokio_postgres::error::SqlState;

use super::{
    SOON, check_complete, dump, execute, migrate_as, owner, refused, role, same, succeeded, url_of,
};

#[tokio::test]
async fn a_role_that_does_not_own_the_tables_learns_the_owner() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let app = owner(&database).await;
    let stranger = role(&database, "stranger").await;
    execute(
        &client,
        &format!("grant all on all tables in schema public to {stranger}"),
    )
    .await;
    execute(
        &client,
        &format!("grant create on database {} to {stranger}", database.name()),
    )
    .await;
    let before = dump(&database).await;
    for direction in ["up", "down"] {
        let output = migrate_as(&url_of(&database, &stranger), &database, &[direction], &[]).await;
        let message = refused(&output, 1);
        assert!(
            message.contains(&format!(
                "the role {stranger} does not own \"public\".\"runs_v3\""
            )),
            "{message}"
        );
        assert!(message.contains(&format!("migrate as {app}")), "{message}");
    }
    same(&before, &dump(&database).await);
    // A member of the owning role may migrate.
    execute(&client, &format!("grant {app} to {stranger}")).await;
    succeeded(&migrate_as(&url_of(&database, &stranger), &database, &["up"], &[]).await);
    check_complete(&database).await;
}

#[tokio::test]
async fn an_owner_without_create_on_the_database_uses_an_existing_schema() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let app = owner(&database).await;
    let indexer = role(&database, "indexer").await;
    let url = url_of(&database, &app);
    let message = refused(&migrate_as(&url, &database, &["up"], &[]).await, 1);
    assert!(
        message.contains(&format!("grant CREATE on the database to {app}")),
        "{message}"
    );

    execute(
        &client,
        &format!(
            "create schema status_indexer; grant usage, create on schema status_indexer to {app}"
        ),
    )
    .await;
    let before = dump(&database).await;
    succeeded(&migrate_as(&url, &database, &["up"], &[]).await);
    check_complete(&database).await;
    let up = ["up", "--grant-to", indexer.as_str()];
    let message = refused(&migrate_as(&url, &database, &up, &[]).await, 1);
    assert!(message.contains("USAGE on \"status_indexer\""), "{message}");
    execute(
        &client,
        &format!("grant usage on schema status_indexer to {indexer}"),
    )
    .await;
    succeeded(&migrate_as(&url, &database, &up, &[]).await);
    execute(
        &client,
        &format!("revoke usage on schema status_indexer from {indexer}"),
    )
    .await;
    execute(&client, "truncate flows_v3, metadata_v3 cascade").await;
    succeeded(&migrate_as(&url, &database, &["down"], &[]).await);
    same(&before, &dump(&database).await);
}

#[tokio::test]
async fn a_granted_role_can_run_the_daemon_and_nothing_else() {
    let database = Database::fresh().await;
    let app = owner(&database).await;
    let indexer = role(&database, "indexer").await;
    let admin = database.client().await;
    // The default since PostgreSQL 15.
    execute(&admin, "revoke create on schema public from public").await;
    execute(
        &admin,
        &format!("grant create on database {} to {app}", database.name()),
    )
    .await;
    let up = ["up", "--grant-to", indexer.as_str()];
    succeeded(&migrate_as(&url_of(&database, &app), &database, &up, &[]).await);
    let daemon = Launch::on(&database)
        .args(&["run", "--metrics-listen", "127.0.0.1:0"])
        .env("DATABASE_URL", &url_of(&database, &indexer))
        .env("RUN_INACTIVE_CUTOFF_TIME", "30")
        .start()
        .await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let now = writer.now_secs().await;
    let run = writer.insert_run("F", Some(now)).await;
    let ahead = writer.insert_run("F", Some(now + 4_000)).await;
    writer.attempt_ok("F", run, "True", now * 1000).await;
    eventually_eq(SOON, "completed", "completed".to_owned(), async || {
        writer.status("F", run).await
    })
    .await;
    eventually_eq(SOON, "failed", "failed".to_owned(), async || {
        writer.status("F", ahead).await
    })
    .await;
    let message = succeeded(
        &Launch::on(&database)
            .args(&["explain", "F", &run.to_string()])
            .env("DATABASE_URL", &url_of(&database, &indexer))
            .env("RUN_INACTIVE_CUTOFF_TIME", "30")
            .output()
            .await,
    );
    assert!(message.contains("completed (agrees)"), "{message}");

    let mut config = database.config();
    config.user(&indexer);
    let client = connect(&config).await;
    for forbidden in [
        "update runs_v3 set user_name = 'x'",
        "update runs_v3 set last_heartbeat_ts = 0",
        "delete from runs_v3",
        "insert into runs_v3 (flow_id, ts_epoch) values ('F', 0)",
        "update metadata_v3 set value = 'x'",
        "delete from metadata_v3",
        "truncate metadata_v3",
        "select * from flows_v3",
        "delete from status_indexer.schema_history",
        "insert into status_indexer.grants values ('x', 'y', 'z')",
        "delete from status_indexer.state",
        "create table status_indexer.mine ()",
        "create view public.mine as select 1",
        "drop table status_indexer.queue",
        "alter table runs_v3 disable trigger all",
        "alter function status_indexer.apply(text[], bigint[], boolean) reset all",
    ] {
        let error = client.batch_execute(forbidden).await.expect_err(forbidden);
        assert_eq!(
            error.code(),
            Some(&SqlState::INSUFFICIENT_PRIVILEGE),
            "{forbidden}"
        );
    }
    for forbidden in [
        "update status_indexer.runs set flow_id = 'x'",
        "delete from status_indexer.runs",
        "insert into status_indexer.runs (flow_id, run_number) values ('F', 9)",
    ] {
        let error = client.batch_execute(forbidden).await.expect_err(forbidden);
        assert_eq!(
            error.code(),
            Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE),
            "{forbidden}: the view cannot be written"
        );
    }
    assert!(daemon.terminate().await.success());
}
