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
    let mark_valid = "update status_indexer.state set believable_since = now()";
    let valid = "select count(*) from status_indexer.state where believable_since is not null";
    for (damage, complaint, stays_valid) in [
        (
            "drop index status_indexer_running",
            "status_indexer_running: missing",
            true,
        ),
        (
            "update pg_index set indisvalid = false where indexrelid = 'status_indexer_listing'::regclass",
            "status_indexer_listing: INVALID",
            true,
        ),
        (
            "drop trigger status_indexer_insert on metadata_v3",
            "4 of 5",
            false,
        ),
        (
            "drop trigger status_indexer_heartbeat on runs_v3",
            "4 of 5",
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
        message.contains("status_indexer_insert on public.runs_v3: DISABLED"),
        "{message}"
    );
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
        "update status_indexer.state set pass_flow_id = 'Z', pass_run_number = 1",
    )
    .await;
    writer.attempt_ok("F", run, "True", 1).await;
    let daemon = Launch::on(&database)
        .args(&["run", "--metrics-listen", "127.0.0.1:0"])
        .spawn();
    daemon
        .logged("that a trigger is missing", |line| {
            let message = line["message"].as_str().unwrap_or_default();
            message.contains("a trigger is missing or disabled")
        })
        .await;
    let position = "select count(pass_flow_id) from status_indexer.state";
    eventually_eq(SOON, "the backfill is abandoned", 0, async || {
        number(client, position).await
    })
    .await;
    assert_eq!(daemon.get("/readyz").await.map(|(code, _)| code), Some(503));
    let valid = "select count(believable_since) from status_indexer.state";
    assert_eq!(number(client, valid).await, 0);
    assert_eq!(writer.status("F", run).await, "running");

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
        message.contains("0014_running_index          pending"),
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
        "index       status_indexer_listing: valid",
        "cutoff      77 s",
        "believable  no: the first pass has compared 0 runs",
    ] {
        assert!(message.contains(part), "{part} is not in\n{message}");
    }
    let daemon = Launch::on(&database)
        .env("RUN_INACTIVE_CUTOFF_TIME", "77")
        .start()
        .await;
    let message = succeeded(&migrate(&database, &["status"]).await);
    assert!(message.contains("believable  yes"), "{message}");
    assert!(daemon.terminate().await.success());
    succeeded(&migrate(&database, &["down"]).await);
    refused(&migrate(&database, &["status"]).await, 1);
}
