//! Changes of upstream's columns by a later migration of the metadata service, beside open sessions.

use testkit::database::Database;
use tokio_postgres::Client;

use super::{check_complete, execute, migrate, number, refused, succeeded};

/// Changes that work while the indexer is installed.
const LIVE: [&str; 16] = [
    "runs_v3 alter run_number type bigint",
    "runs_v3 alter flow_id type text",
    "runs_v3 alter last_heartbeat_ts type numeric",
    "runs_v3 alter last_heartbeat_ts type double precision",
    "runs_v3 alter run_id type text",
    "runs_v3 alter ts_epoch type numeric",
    "runs_v3 alter user_name type text",
    "runs_v3 rename user_name to owner_name",
    "metadata_v3 alter flow_id type text",
    "metadata_v3 alter run_number type numeric",
    "metadata_v3 alter field_name type text",
    "metadata_v3 alter value type jsonb using to_jsonb(value)",
    "metadata_v3 alter id type numeric",
    "metadata_v3 alter ts_epoch type numeric",
    "metadata_v3 alter task_id type text",
    "metadata_v3 drop constraint metadata_v3_pkey",
];

/// What the documentation says to run before a change of `metadata_v3.step_name`.
const DROP_TRIGGERS: &str = "\
drop trigger status_indexer_insert on metadata_v3;
drop trigger status_indexer_update on metadata_v3;
drop trigger status_indexer_delete on metadata_v3;";

/// Writes that fire every trigger, calls of the functions, and what they return for a run.
async fn check_uses(client: &Client, change: &str) {
    let writes = "\
insert into flows_v3 (flow_id, ts_epoch) values ('Uses', 0) on conflict do nothing;
insert into runs_v3 (flow_id, run_number, ts_epoch) values ('Uses', 1, 0);
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
values ('Uses', 1, 'end', 1, 'attempt_ok', '\"x\"', 't', 1), ('Uses', 1, 'end', 1, 'attempt_ok', 'true', 't', 2);
update metadata_v3 set ts_epoch = 4 where flow_id = 'Uses' and ts_epoch = 2;
delete from metadata_v3 where flow_id = 'Uses' and ts_epoch = 1";
    execute(client, writes).await;
    let queued = "select count(*) from status_indexer.queue where flow_id = 'Uses'";
    assert_eq!(number(client, queued).await, 5, "{change}");
    execute(client, "select status_indexer.drain(0, 1000000, null)").await;
    // The view has the columns of the last migration, also where one has another name now.
    let view =
        "select count(*) from status_indexer.runs where flow_id = 'Uses' and status = 'completed'";
    if change.contains("rename") {
        client.batch_execute(view).await.expect_err(change);
    } else {
        assert_eq!(number(client, view).await, 1, "{change}");
    }
    for uses in [
        "select count(*) from runs_v3 where flow_id = 'Uses' and run_status = 'completed'",
        "select (status_indexer.explain('Uses', '1') ->> 'agrees')::boolean::integer::bigint",
        "select (cardinality(flow_ids) is null and compared > 0)::integer::bigint
           from status_indexer.compare('', 0, 100)",
        "select (running = 0)::integer::bigint from status_indexer.due(null, true)",
    ] {
        assert_eq!(number(client, uses).await, 1, "{change}: {uses}");
    }
    execute(
        client,
        "update runs_v3 set run_status = 'failed' where flow_id = 'Uses';
         update runs_v3 set last_heartbeat_ts = 1 where flow_id = 'Uses'",
    )
    .await;
    assert_eq!(number(client, queued).await, 1, "{change}");
    execute(
        client,
        "select status_indexer.drain(0, 1000000, null);
         delete from runs_v3 where flow_id = 'Uses'; delete from metadata_v3 where flow_id = 'Uses';
         delete from status_indexer.queue",
    )
    .await;
}

#[tokio::test]
async fn upstream_can_change_its_columns_while_the_indexer_is_installed() {
    for change in LIVE {
        let database = Database::fresh().await;
        let (session, upstream) = (database.client().await, database.client().await);
        succeeded(&migrate(&database, &["up"]).await);
        execute(
            &session,
            "update status_indexer.state set valid_since = now()",
        )
        .await;
        // The session has planned everything for the old types.
        check_uses(&session, "before").await;
        execute(&upstream, &format!("alter table {change}")).await;
        check_uses(&session, change).await;
        check_uses(&upstream, change).await;
    }
}

#[tokio::test]
async fn up_gives_the_view_the_new_types_and_keeps_its_grants() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let reader = super::role(&database, "reader").await;
    succeeded(&migrate(&database, &["up"]).await);
    execute(
        &client,
        &format!("grant select on status_indexer.runs to {reader}, public"),
    )
    .await;
    let change = "alter table runs_v3 alter run_number type bigint, alter flow_id type text";
    execute(&client, change).await;
    succeeded(&migrate(&database, &["up"]).await);
    let types = "select count(*) from pg_attribute
                  where attrelid = 'status_indexer.runs'::regclass
                    and (attname, atttypid::regtype::text) in (('flow_id', 'text'), ('run_number', 'bigint'))";
    assert_eq!(number(&client, types).await, 2);
    let grants = "select cardinality(relacl)::bigint from pg_class where oid = 'status_indexer.runs'::regclass";
    assert_eq!(
        number(&client, grants).await,
        3,
        "the owner, the reader, and public"
    );
    check_complete(&database).await;
    let message = succeeded(&migrate(&database, &["up"]).await);
    assert!(message.contains("nothing to do"), "{message}");
}

#[tokio::test]
async fn a_read_of_the_view_by_key_scans_the_primary_key() {
    let database = Database::fresh().await;
    let client = database.client().await;
    succeeded(&migrate(&database, &["up"]).await);
    super::fill(&client, 20_000).await;
    execute(
        &client,
        "set session_replication_role = replica;
         update runs_v3
            set run_status = (array['running', 'completed', 'failed'])[1 + run_number % 3];
         analyze runs_v3",
    )
    .await;
    let rows = client
        .query(
            "explain select status from status_indexer.runs
              where flow_id = 'Old' and run_number = 17",
            &[],
        )
        .await
        .expect("the view exists");
    let plan: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    let plan = plan.join("\n");
    // One for each status. The pending runs are looked up in a function.
    let scans = plan.matches("Index Scan using runs_v3_pkey").count();
    assert_eq!(scans, 3, "{plan}");
    assert!(plan.contains("(run_number = 17)"), "{plan}");
    assert!(!plan.contains("Seq Scan on runs_v3"), "{plan}");
}

#[tokio::test]
async fn the_type_of_the_step_name_changes_without_the_triggers_which_up_creates_again() {
    let database = Database::fresh().await;
    let client = database.client().await;
    succeeded(&migrate(&database, &["up"]).await);
    let change = "alter table metadata_v3 alter step_name type text";
    let error = client
        .batch_execute(change)
        .await
        .expect_err("a trigger reads it");
    let error = error.as_db_error().expect("it is the server's");
    assert_eq!(
        error.message(),
        "cannot alter type of a column used in a trigger definition"
    );

    execute(
        &client,
        "update status_indexer.state set valid_since = now()",
    )
    .await;
    execute(&client, DROP_TRIGGERS).await;
    execute(&client, change).await;
    refused(&migrate(&database, &["status"]).await, 1);
    succeeded(&migrate(&database, &["up"]).await);
    check_complete(&database).await;
    let valid = "select count(valid_since) from status_indexer.state";
    assert_eq!(
        number(&client, valid).await,
        0,
        "evidence may have been missed"
    );

    let documentation = include_str!("../../docs/operations.md");
    assert!(documentation.contains(DROP_TRIGGERS));
    let words: Vec<&str> = documentation.split_whitespace().collect();
    let documentation = words.join(" ");
    assert!(documentation.contains("cannot alter type of a column used in a trigger definition"));
}
