//! `migrate up`: repeated, on a damaged installation, and what `migrate status` reports of it.

use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::wait::eventually_eq;

use super::{
    SOON, check_complete, dump, execute, migrate, migrate_as, number, refused, same, succeeded,
};

#[tokio::test]
async fn a_second_up_changes_nothing() {
    let database = Database::fresh().await;
    succeeded(&migrate(&database, &[]).await);
    let once = dump(&database).await;
    let message = succeeded(&migrate(&database, &["up"]).await);
    assert!(message.contains("nothing to do"), "{message}");
    same(&once, &dump(&database).await);
    check_complete(&database).await;
}

#[tokio::test]
async fn up_recreates_dropped_triggers_and_dropped_or_invalid_indexes() {
    let database = Database::fresh().await;
    let client = database.client().await;
    succeeded(&migrate(&database, &["up"]).await);
    let whole = dump(&database).await;
    let mark_valid = "update status_indexer.state set valid_since = now()";
    let valid = "select count(*) from status_indexer.state where valid_since is not null";
    for (damage, complaint, stays_valid) in [
        (
            "drop index status_indexer_running",
            "status_indexer_running: missing: run `status-indexer migrate up`",
            true,
        ),
        (
            "update pg_index set indisvalid = false where indexrelid = 'status_indexer_failed'::regclass",
            "status_indexer_failed: invalid: run `status-indexer migrate up`",
            true,
        ),
        (
            "drop trigger status_indexer_insert on metadata_v3",
            "status_indexer_insert on public.metadata_v3: missing: run `status-indexer migrate up`",
            false,
        ),
        (
            "drop trigger status_indexer_heartbeat on runs_v3",
            "status_indexer_heartbeat on public.runs_v3: missing: run `status-indexer migrate up`",
            false,
        ),
        (
            "drop trigger status_indexer_insert on runs_v3;
             create trigger status_indexer_insert after insert on runs_v3
               for each row execute function status_indexer.enqueue_changed()",
            "status_indexer_insert on public.runs_v3: replaced: run `status-indexer migrate up`",
            false,
        ),
    ] {
        execute(&client, mark_valid).await;
        execute(&client, damage).await;
        let message = refused(&migrate(&database, &["status"]).await, 1);
        assert!(message.contains(complaint), "{damage}: {message}");
        succeeded(&migrate(&database, &["up"]).await);
        same(&whole, &dump(&database).await);
        assert_eq!(
            number(&client, valid).await,
            i64::from(stays_valid),
            "{damage}"
        );
        check_complete(&database).await;
    }
    execute(
        &client,
        "alter table runs_v3 disable trigger status_indexer_insert",
    )
    .await;
    let message = refused(&migrate(&database, &["status"]).await, 1);
    assert!(
        message.contains(
            "status_indexer_insert on public.runs_v3: disabled: run `alter table public.runs_v3 \
             enable trigger status_indexer_insert; select status_indexer.invalidate();`"
        ),
        "{message}"
    );
}

#[tokio::test]
async fn a_trigger_counts_only_if_it_fires_and_executes_the_installed_function() {
    const STATE: &str = "\
select state from status_indexer.triggers()
 where table_name = '\"public\".\"metadata_v3\"' and trigger_name = 'status_indexer_insert'";
    let database = Database::fresh().await;
    let client = database.client().await;
    succeeded(&migrate(&database, &["up"]).await);
    let count = "select count(*) from status_indexer.triggers() where state = 'enabled'";
    assert_eq!(number(&client, count).await, 5);
    for (damage, expected) in [
        ("select 1", "enabled"),
        (
            "alter table metadata_v3 disable trigger status_indexer_insert",
            "disabled",
        ),
        (
            "alter table metadata_v3 enable replica trigger status_indexer_insert",
            "disabled",
        ),
        (
            "alter table metadata_v3 enable always trigger status_indexer_insert",
            "enabled",
        ),
        (
            "drop trigger status_indexer_insert on metadata_v3",
            "missing",
        ),
        (
            "alter trigger status_indexer_insert on metadata_v3 rename to status_indexer_other",
            "missing",
        ),
        (
            "drop trigger status_indexer_insert on metadata_v3;
             create trigger status_indexer_insert after insert on metadata_v3
               for each row execute function status_indexer.enqueue_run()",
            "replaced",
        ),
        (
            "create function public.enqueue_evidence() returns trigger language plpgsql as 'begin return null; end';
             drop trigger status_indexer_insert on metadata_v3;
             create trigger status_indexer_insert after insert on metadata_v3
               for each row execute function public.enqueue_evidence()",
            "name taken",
        ),
        (
            "drop trigger status_indexer_insert on metadata_v3;
             create trigger status_indexer_insert after insert on flows_v3
               for each row execute function status_indexer.enqueue_evidence()",
            "missing",
        ),
        (
            "create or replace function status_indexer.enqueue_evidence() returns trigger
               language plpgsql security definer as 'begin return null; end'",
            "function replaced",
        ),
        (
            "create or replace function status_indexer.enqueue(flow_id text, run_number bigint)
               returns void language sql as ''",
            "function replaced",
        ),
    ] {
        execute(&client, &format!("begin; {damage}")).await;
        let row = client.query_one(STATE, &[]).await.expect("it is listed");
        assert_eq!(row.get::<_, &str>(0), expected, "{damage}");
        let row = client
            .query_one("select status_indexer.triggers_enabled()", &[])
            .await
            .expect("the function is there");
        assert_eq!(row.get::<_, bool>(0), expected == "enabled", "{damage}");
        execute(&client, "rollback").await;
    }
}

#[tokio::test]
async fn a_backfill_without_all_triggers_never_makes_the_column_valid() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let client = writer.client();
    succeeded(&migrate(&database, &["up"]).await);
    let trigger = "trigger status_indexer_insert";
    execute(
        client,
        &format!("alter table metadata_v3 disable {trigger}"),
    )
    .await;
    // A backfill has passed the run already when a write fires no trigger.
    writer.insert_flow("F").await;
    let run = writer.insert_run("F", Some(writer.now_secs().await)).await;
    execute(
        client,
        "update status_indexer.state set scan_flow_id = 'Z', scan_run_number = 1",
    )
    .await;
    writer.attempt_ok("F", run, "True", 1).await;
    let daemon = Launch::on(&database)
        .args(&["run", "--metrics-listen", "127.0.0.1:0"])
        .spawn();
    daemon
        .logged("that a trigger is missing", |line| {
            line["message"] == "unhealthy" && line["condition"] == "triggers_missing"
        })
        .await;
    let position = "select count(scan_flow_id) from status_indexer.state";
    eventually_eq(SOON, "the backfill is abandoned", 0, async || {
        number(client, position).await
    })
    .await;
    assert_eq!(daemon.get("/readyz").await.map(|(code, _)| code), Some(503));
    let valid = "select count(valid_since) from status_indexer.state";
    assert_eq!(number(client, valid).await, 0);

    execute(client, &format!("alter table metadata_v3 enable {trigger}")).await;
    daemon.ready().await;
    assert_eq!(writer.status("F", run).await, "completed");
    assert!(daemon.terminate().await.success());
}

#[tokio::test]
async fn status_reports_what_is_installed_by_text_and_exit_code() {
    let database = Database::fresh().await;
    let message = refused(&migrate(&database, &["status"]).await, 1);
    assert!(
        message.contains("not installed: run `status-indexer migrate up`"),
        "{message}"
    );
    assert!(
        message.contains("0013_running_index          pending"),
        "{message}"
    );
    let cutoff = [("RUN_INACTIVE_CUTOFF_TIME", "77")];
    succeeded(&migrate_as(database.url(), &database, &["up"], &cutoff).await);
    let output = migrate(&database, &["status"]).await;
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!message.contains("WARNING"), "the server warned: {message}");
    let message = succeeded(&output);
    for part in [
        "tables      \"public\".\"runs_v3\", \"public\".\"metadata_v3\"",
        "0001_schema                 applied 2",
        "trigger     status_indexer_insert on public.metadata_v3: enabled",
        "index       status_indexer_failed: valid",
        "cutoff      77 s",
        "valid       no: the backfill has compared 0 runs and corrected 0",
    ] {
        assert!(message.contains(part), "{part} is not in\n{message}");
    }
    let daemon = Launch::on(&database)
        .env("RUN_INACTIVE_CUTOFF_TIME", "77")
        .start()
        .await;
    let message = succeeded(&migrate(&database, &["status"]).await);
    assert!(message.contains("valid       yes"), "{message}");
    assert!(daemon.terminate().await.success());
    succeeded(&migrate(&database, &["down"]).await);
    refused(&migrate(&database, &["status"]).await, 1);
}
