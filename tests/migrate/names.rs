//! Objects of others that have the indexer's names, or that depend on its objects; and tables that
//! are not yet those of the metadata service.

use testkit::database::Database;

use super::{check_complete, dump, execute, migrate, number, refused, same, succeeded};

/// An object of somebody else, and what `up` says of it.
const TAKEN: [(&str, &str); 6] = [
    (
        "create function public.f() returns trigger language plpgsql as 'begin return null; end';
         create trigger status_indexer_insert after insert on runs_v3 for each row execute function f()",
        "has a trigger status_indexer_insert that the indexer did not create",
    ),
    (
        "create index status_indexer_failed on runs_v3 (user_name)",
        "is not the index that the indexer creates",
    ),
    (
        "create index status_indexer_running on flows_v3 (flow_id)",
        "is not the index that the indexer creates",
    ),
    (
        "create table status_indexer_running ()",
        "is not the index that the indexer creates",
    ),
    (
        "create schema status_indexer; create table status_indexer.queue (id bigint)",
        "contains objects that the indexer did not create (queue)",
    ),
    (
        "create schema status_indexer; create table status_indexer.schema_history (version text)",
        "contains objects that the indexer did not create (schema_history)",
    ),
];

#[tokio::test]
async fn objects_of_others_with_the_same_names_are_neither_counted_nor_dropped() {
    for (create, words) in TAKEN {
        let database = Database::fresh().await;
        execute(&database.client().await, create).await;
        let before = dump(&database).await;
        let message = refused(&migrate(&database, &["up"]).await, 1);
        assert!(message.contains(words), "{create}: {message}");
        let message = refused(&migrate(&database, &["status"]).await, 1);
        assert!(message.contains("not installed"), "{create}: {message}");
        let message = succeeded(&migrate(&database, &["down"]).await);
        assert!(message.contains("not installed"), "{create}: {message}");
        same(&before, &dump(&database).await);
    }
}

#[tokio::test]
async fn objects_that_replaced_the_indexers_survive_down() {
    let database = Database::fresh().await;
    let client = database.client().await;
    succeeded(&migrate(&database, &["up"]).await);
    execute(
        &client,
        "drop index status_indexer_failed; create index status_indexer_failed on runs_v3 (user_name);
         create function public.f() returns trigger language plpgsql as 'begin return null; end';
         drop trigger status_indexer_heartbeat on runs_v3;
         create trigger status_indexer_heartbeat after update on runs_v3 for each row execute function f();
         alter trigger status_indexer_insert on metadata_v3 rename to renamed",
    )
    .await;
    let message = refused(&migrate(&database, &["status"]).await, 1);
    for part in [
        "index       status_indexer_failed: missing",
        "status_indexer_heartbeat on public.runs_v3: the name belongs to a trigger",
        "status_indexer_insert on public.metadata_v3: missing",
    ] {
        assert!(message.contains(part), "{part} is not in\n{message}");
    }
    refused(&migrate(&database, &["up"]).await, 1);
    succeeded(&migrate(&database, &["down"]).await);
    let kept = "select (select count(*) from pg_indexes
                         where indexdef = 'CREATE INDEX status_indexer_failed ON public.runs_v3 USING btree (user_name)')
                     + (select count(*) from pg_trigger where tgname = 'status_indexer_heartbeat')";
    assert_eq!(number(&client, kept).await, 2);
    let left = "select count(*) from pg_trigger where tgname = 'renamed'";
    assert_eq!(number(&client, left).await, 0);
}

#[tokio::test]
async fn objects_that_depend_on_the_indexers_stop_down_before_it_removes_anything() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let before = dump(&database).await;
    succeeded(&migrate(&database, &["up"]).await);
    for (create, name, drop) in [
        (
            "create view mine as select * from status_indexer.runs",
            "view public.mine",
            "drop view mine",
        ),
        (
            "create view mine as select flow_id, run_status from runs_v3",
            "view public.mine",
            "drop view mine",
        ),
        (
            "create materialized view mine as select status_indexer.is_valid()",
            "materialized view public.mine",
            "drop materialized view mine",
        ),
        (
            "create index mine on runs_v3 (run_status)",
            "index public.mine",
            "drop index mine",
        ),
        (
            "alter table runs_v3 add constraint mine check (run_status <> 'x')",
            "constraint mine on table public.runs_v3",
            "alter table runs_v3 drop constraint mine",
        ),
        (
            "create trigger mine after insert on flows_v3 for each row
               execute function status_indexer.enqueue_run()",
            "trigger mine on table public.flows_v3",
            "drop trigger mine on flows_v3",
        ),
        (
            "create table status_indexer.mine (id serial primary key)",
            "table status_indexer.mine",
            "drop table status_indexer.mine",
        ),
        (
            "create function status_indexer.status(integer) returns integer language sql as 'select 1'",
            "function status_indexer.status(integer)",
            "drop function status_indexer.status(integer)",
        ),
    ] {
        execute(&client, create).await;
        let message = refused(&migrate(&database, &["down"]).await, 1);
        assert!(message.contains(name), "{create}: {message}");
        assert!(
            message.contains("nothing was removed"),
            "{create}: {message}"
        );
        check_complete(&database).await;
        execute(&client, drop).await;
    }
    execute(&client, "truncate flows_v3, metadata_v3 cascade").await;
    succeeded(&migrate(&database, &["down"]).await);
    same(&before, &dump(&database).await);
}

#[tokio::test]
async fn down_by_an_older_binary_removes_nothing() {
    let database = Database::fresh().await;
    let client = database.client().await;
    succeeded(&migrate(&database, &["up"]).await);
    let newer = "insert into status_indexer.schema_history (version, name) values (999, 'future')";
    execute(&client, newer).await;
    let before = dump(&database).await;
    let message = refused(&migrate(&database, &["down"]).await, 1);
    assert!(message.contains("use the newer binary"), "{message}");
    same(&before, &dump(&database).await);
}

#[tokio::test]
async fn tables_without_all_of_upstreams_migrations_are_refused_with_what_is_missing() {
    for (undo, words) in [
        (
            "alter table runs_v3 drop column run_id, drop column last_heartbeat_ts",
            "\"public\".\"runs_v3\" has no column run_id, last_heartbeat_ts: run the migrations of the \
             metadata service first (at least up to 20200603104139_add_str_id_cols)",
        ),
        (
            "drop index metadata_v3_akey",
            "at least up to 20201002000616_update_metadata_primary_key",
        ),
        (
            "alter table metadata_v3 drop column id",
            "\"public\".\"metadata_v3\" has no column id",
        ),
        (
            "drop table metadata_v3",
            "the table metadata_v3 does not exist",
        ),
    ] {
        let database = Database::fresh().await;
        execute(&database.client().await, undo).await;
        let before = dump(&database).await;
        let message = refused(&migrate(&database, &["up"]).await, 1);
        assert!(message.contains(words), "{undo}: {message}");
        same(&before, &dump(&database).await);
    }
}
