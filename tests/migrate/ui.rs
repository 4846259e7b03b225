//! `migrate up --no-ui`: undoes `migrate up --ui`, and nothing else.

use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::drift::eventually_no_drift;

use super::{
    check_complete, client_of, dump, execute, migrate, migrate_as, number, refused, role, same,
    succeeded,
};

const KEPT: &str = "select count(*) from runs_v3 where run_finished_at is not null";
const VALID: &str = "select count(valid_since) from status_indexer.state";

/// Makes the column valid.
async fn backfill(database: &Database) {
    Launch::on(database).args(&["backfill"]).succeed().await;
}

/// Runs with evidence of their end.
async fn finished_runs(database: &Database) {
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    for value in ["True", "False", "True"] {
        let run = writer.insert_run("F", None).await;
        writer.attempt_ok("F", run, value, now).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_ui_leaves_the_database_as_it_was_before_ui_and_the_column_valid() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let indexer = role(&database, "indexer").await;
    let grant = ["up", "--grant-to", indexer.as_str()];
    succeeded(&migrate(&database, &grant).await);
    finished_runs(&database).await;
    backfill(&database).await;
    let before = dump(&database).await;

    succeeded(&migrate(&database, &["up", "--ui"]).await);
    backfill(&database).await;
    assert_eq!(number(&client, KEPT).await, 3);
    let status = succeeded(&migrate(&database, &["status"]).await);
    assert!(
        status.contains("status_indexer_ui_status: valid"),
        "{status}"
    );

    // Twice: the second time there is nothing to do.
    let message = succeeded(&migrate(&database, &["up", "--no-ui"]).await);
    assert!(message.contains("not kept any more"), "{message}");
    let message = succeeded(&migrate(&database, &["up", "--no-ui"]).await);
    assert!(message.contains("nothing to do"), "{message}");
    same(&before, &dump(&database).await);
    assert_eq!(number(&client, KEPT).await, 0);
    assert_eq!(number(&client, VALID).await, 1, "no backfill is needed");
    let status = succeeded(&migrate(&database, &["status"]).await);
    assert!(status.contains("optional: `migrate up --ui`"), "{status}");
    let verify = Launch::on(&database).args(&["verify"]).output().await;
    assert!(verify.status.success(), "{verify:?}");
    // A later `up` does not bring it back, and the daemon's role can still write.
    succeeded(&migrate(&database, &["up"]).await);
    same(&before, &dump(&database).await);
    let of_role = client_of(&database, &indexer).await;
    execute(
        &of_role,
        "update runs_v3 set run_status = 'failed', run_finished_at = null",
    )
    .await;

    // And again.
    succeeded(&migrate(&database, &["up", "--ui"]).await);
    backfill(&database).await;
    assert_eq!(number(&client, KEPT).await, 3);
    succeeded(&migrate(&database, &["up", "--no-ui"]).await);
    check_complete(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_ui_works_under_a_daemon_and_writers_do_not_queue_behind_it() {
    let database = Database::fresh().await;
    succeeded(&migrate(&database, &["up", "--ui"]).await);
    let daemon = Launch::on(&database).start().await;
    finished_runs(&database).await;
    let (holder, writer) = (database.client().await, database.writer().await);
    eventually_no_drift(writer.client()).await;
    execute(&holder, "begin; lock table runs_v3 in row exclusive mode").await;
    let removing = Launch::on(&database)
        .args(&["migrate", "up", "--no-ui"])
        .spawn();
    removing
        .logged("it waits for the lock", |line| {
            line.to_string().contains("waiting for locks")
        })
        .await;
    // Whoever writes meanwhile waits for less than a second, however long the lock is held.
    execute(writer.client(), "set lock_timeout = '1s'").await;
    for _ in 0..20 {
        let run = writer.insert_run("F", None).await;
        let now = writer.now_ms().await;
        writer.attempt_ok("F", run, "True", now).await;
        assert!(writer.heartbeat("F", run, now / 1000).await);
    }
    execute(&holder, "commit").await;
    assert!(removing.exit().await.success());
    eventually_no_drift(writer.client()).await;
    assert_eq!(number(writer.client(), KEPT).await, 0);
    daemon.ready().await;
    assert!(daemon.terminate().await.success());
}

#[tokio::test]
async fn an_interrupted_removal_is_continued_and_leaves_nothing() {
    let database = Database::fresh().await;
    let client = database.client().await;
    succeeded(&migrate(&database, &["up"]).await);
    let before = dump(&database).await;
    // As after an interruption: the steps are forgotten, an index is left.
    execute(
        &client,
        "create index status_indexer_ui_status on runs_v3 (run_status collate \"C\", ts_epoch desc, run_number desc)",
    )
    .await;
    let message = succeeded(&migrate(&database, &["up", "--no-ui"]).await);
    assert!(!message.contains("nothing to do"), "{message}");
    same(&before, &dump(&database).await);
}

#[tokio::test]
async fn contradictions_and_objects_of_others_stop_it_before_anything_is_changed() {
    let database = Database::fresh().await;
    let client = database.client().await;
    succeeded(&migrate(&database, &["up", "--ui"]).await);
    let message = refused(&migrate(&database, &["up", "--ui", "--no-ui"]).await, 64);
    assert!(message.contains("give one of them"), "{message}");
    let env = [("STATUS_INDEXER_UI", "true")];
    let output = migrate_as(database.url(), &database, &["up", "--no-ui"], &env).await;
    assert!(refused(&output, 64).contains("STATUS_INDEXER_UI"));
    let message = refused(&migrate(&database, &["down", "--no-ui"]).await, 64);
    assert!(message.contains("an option of `migrate up`"), "{message}");

    execute(
        &client,
        "create view mine as select run_finished_at from runs_v3",
    )
    .await;
    let before = dump(&database).await;
    let message = refused(&migrate(&database, &["up", "--no-ui"]).await, 1);
    assert!(
        message.contains("drop the objects that depend on it first"),
        "{message}"
    );
    same(&before, &dump(&database).await);
    execute(&client, "drop view mine").await;
    // A variable that says false is not a contradiction.
    let env = [("STATUS_INDEXER_UI", "false")];
    succeeded(&migrate_as(database.url(), &database, &["up", "--no-ui"], &env).await);
}
