//! Logical replication of the runs table to a subscriber that does not have the column.

use testkit::database::Database;
use testkit::postgres::{Options, Postgres};
use testkit::wait::{eventually, eventually_eq};
use tokio_postgres::Client;

use super::{
    SOON, check_complete, dump, execute, migrate, migrate_as, number, refused, same, succeeded,
};

/// The statement that the message gives for each subscriber.
fn statement(message: &str) -> String {
    let (_, rest) = message
        .split_once("On each subscriber first run `")
        .expect("the message contains the statement");
    let (statement, _) = rest.split_once('`').expect("it ends");
    statement.to_owned()
}

/// Creates a subscription in `subscriber` to `publication`, and waits until it has copied the tables.
async fn subscribe(publisher: &Database, subscriber: &Client, publication: &str) {
    let name = publisher.name();
    execute(
        &publisher.client().await,
        &format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')"),
    )
    .await;
    execute(
        subscriber,
        &format!(
            "create subscription s connection '{}' publication {publication}
               with (create_slot = false, slot_name = '{name}')",
            publisher.url()
        ),
    )
    .await;
    let copied = "select count(*) from pg_subscription_rel where srsubstate <> 'r'";
    eventually_eq(SOON, "the tables are copied", 0, async || {
        number(subscriber, copied).await
    })
    .await;
}

/// Writes a heartbeat and waits until the subscriber has it.
async fn check_replicates(publisher: &Client, subscriber: &Client, heartbeat: i64) {
    execute(
        publisher,
        &format!("update runs_v3 set last_heartbeat_ts = {heartbeat} where flow_id = 'Old'"),
    )
    .await;
    // Until the first one arrives, the copied runs have none.
    let received = "select coalesce(min(last_heartbeat_ts), 0) from runs_v3 where flow_id = 'Old'";
    eventually_eq(SOON, "the heartbeat arrives", heartbeat, async || {
        number(subscriber, received).await
    })
    .await;
}

#[tokio::test]
async fn a_publication_of_the_runs_table_stops_up_until_the_subscriber_has_the_column() {
    let options = Options::default().set("wal_level", "logical");
    let server = Postgres::start(options).await.expect("a server of our own");
    let (database, other) = (Database::on(&server).await, Database::on(&server).await);
    let (publisher, subscriber) = (database.client().await, other.client().await);
    super::fill(&publisher, 3).await;
    execute(
        &publisher,
        "create publication p for table flows_v3, runs_v3",
    )
    .await;
    subscribe(&database, &subscriber, "p").await;
    check_replicates(&publisher, &subscriber, 1).await;

    let before = dump(&database).await;
    let message = refused(&migrate(&database, &["up"]).await, 1);
    assert!(
        message.contains("\"public\".\"runs_v3\" is published (p)"),
        "{message}"
    );
    assert!(message.contains("--allow-publications"), "{message}");
    assert!(!message.contains("also receive the tables"), "{message}");
    same(&before, &dump(&database).await);

    execute(&subscriber, &statement(&message)).await;
    succeeded(&migrate(&database, &["up", "--allow-publications"]).await);
    check_replicates(&publisher, &subscriber, 2).await;
    check_complete(&database).await;
    let status =
        "select count(*) from runs_v3 where flow_id = 'Works' and run_status = 'completed'";
    eventually_eq(SOON, "the status arrives", 1, async || {
        number(&subscriber, status).await
    })
    .await;
    // The column exists, so a later `up` needs no permission.
    succeeded(&migrate(&database, &["up"]).await);
    execute(&subscriber, "alter subscription s disable; alter subscription s set (slot_name = none); drop subscription s").await;
    server.stop().await.expect("it stops");
}

#[tokio::test]
async fn a_publication_of_all_tables_needs_the_schema_on_the_subscriber() {
    let options = Options::default().set("wal_level", "logical");
    let server = Postgres::start(options).await.expect("a server of our own");
    let (database, other) = (Database::on(&server).await, Database::on(&server).await);
    let (publisher, subscriber) = (database.client().await, other.client().await);
    super::fill(&publisher, 3).await;
    execute(&publisher, "create publication whole for all tables").await;
    subscribe(&database, &subscriber, "whole").await;

    let message = refused(&migrate(&database, &["up"]).await, 1);
    assert!(
        message.contains(
            "The subscribers of whole also receive the tables of the schema status_indexer"
        ),
        "{message}"
    );
    succeeded(&migrate(&other, &["up"]).await);
    let allow = [("STATUS_INDEXER_ALLOW_PUBLICATIONS", "true")];
    succeeded(&migrate_as(database.url(), &database, &["up"], &allow).await);
    check_complete(&database).await;
    check_replicates(&publisher, &subscriber, 3).await;
    eventually(SOON, "no change waits", async || {
        let waiting =
            "select (pg_current_wal_lsn() - confirmed_flush_lsn)::bigint from pg_replication_slots";
        number(&publisher, waiting).await < 10_000
    })
    .await;
    assert_eq!(
        number(&subscriber, "select count(*) from status_indexer.queue").await,
        0
    );
    execute(&subscriber, "alter subscription s disable; alter subscription s set (slot_name = none); drop subscription s").await;
    server.stop().await.expect("it stops");
}

#[tokio::test]
async fn only_publications_that_would_contain_the_column_stop_up() {
    let database = Database::fresh().await;
    let client = database.client().await;
    execute(
        &client,
        "create publication others for table flows_v3, metadata_v3",
    )
    .await;
    if testkit::database::shared().await.major() >= 15 {
        let publication = "create publication part for table runs_v3 (flow_id, run_number)";
        execute(&client, publication).await;
        execute(
            &client,
            "create publication whole for tables in schema public",
        )
        .await;
        let message = refused(&migrate(&database, &["up"]).await, 1);
        assert!(message.contains("is published (whole)"), "{message}");
        assert!(!message.contains("also receive the tables"), "{message}");
        execute(&client, "drop publication whole").await;
    }
    succeeded(&migrate(&database, &["up"]).await);
    check_complete(&database).await;
}
