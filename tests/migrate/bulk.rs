//! Deletes and updates of many metadata rows, as operators do to clean up old runs.

use testkit::database::Database;
use testkit::wait::eventually_eq;

use super::{
    SOON, check_complete, client_of, execute, migrate_as, number, owner, succeeded, url_of,
};

/// 100,000 rows that are no evidence, and one row of evidence for each of 100 runs. A set-returning
/// function in `from` would write a temporary file itself.
const FILL: &str = "\
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
select 'F', i / 50, 'start', 1, 'x', repeat('v', 300), 't', i
  from (select generate_series(1, 100000) i) n;
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
select 'F', i, 'end', 2, 'attempt_ok', 'True', 't', i
  from generate_series(1, 100) i";

const TEMP_FILES: &str = "\
select temp_files
  from pg_stat_database
 where datname = current_database()";

#[tokio::test]
async fn bulk_changes_of_metadata_pass_a_temp_file_limit_and_write_no_temporary_file() {
    let database = Database::fresh().await;
    let admin = database.client().await;
    let app = owner(&database).await;
    let allow = format!(
        "alter role {app} set temp_file_limit = '4MB'; grant create on database {} to {app}",
        database.name()
    );
    execute(&admin, &allow).await;
    succeeded(&migrate_as(&url_of(&database, &app), &database, &["up"], &[]).await);
    execute(&admin, FILL).await;
    let queued = "select count(*) from status_indexer.queue";
    let runs = "select count(distinct run_number) from status_indexer.queue";
    execute(&admin, "delete from status_indexer.queue").await;

    let writer = client_of(&database, &app).await;
    execute(&writer, "update metadata_v3 set tags = '[]'").await;
    assert_eq!(number(&admin, queued).await, 0, "tags are no evidence");
    execute(
        &writer,
        "update metadata_v3 set value = 'False' where ts_epoch < 90000",
    )
    .await;
    assert_eq!(number(&admin, queued).await, 100, "the changed evidence");
    execute(&admin, "delete from status_indexer.queue").await;
    execute(&writer, "delete from metadata_v3 where ts_epoch < 90000").await;
    assert_eq!(number(&admin, runs).await, 100, "the deleted evidence");
    // A session reports its statistics at its end.
    drop(writer);
    let sessions = format!("select count(*) from pg_stat_activity where usename = '{app}'");
    eventually_eq(SOON, "the session ends", 0, async || {
        number(&admin, &sessions).await
    })
    .await;
    assert_eq!(number(&admin, TEMP_FILES).await, 0);
    check_complete(&database).await;
}

#[tokio::test]
async fn an_update_that_moves_evidence_enqueues_both_runs() {
    let database = Database::fresh().await;
    let client = database.client().await;
    succeeded(&super::migrate(&database, &["up"]).await);
    execute(
        &client,
        "insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
         values ('F', 1, 'end', 1, 'attempt_ok', 'True', 't', 1), ('F', 1, 'end', 1, 'x', 'True', 't', 1)",
    )
    .await;
    for (change, expected) in [
        ("run_number = 2", "F/1 F/2"),
        ("flow_id = 'G'", "F/2 G/2"),
        (
            "flow_id = 'H', run_number = 1, field_name = 'attempt'",
            "G/2 H/1",
        ),
        ("step_name = 'start'", "H/1"),
        ("step_name = 'end'", "H/1"),
        ("field_name = 'y'", "H/1"),
        ("field_name = 'attempt_ok'", "H/1"),
        ("value = 'False'", "H/1"),
        ("ts_epoch = 2", "H/1"),
        ("ts_epoch = 2, user_name = 'someone'", ""),
    ] {
        execute(&client, "delete from status_indexer.queue").await;
        execute(
            &client,
            &format!("update metadata_v3 set {change} where field_name <> 'x'"),
        )
        .await;
        let queued: String = client
            .query_one(
                "select coalesce(string_agg(flow_id || '/' || run_number, ' ' order by flow_id, run_number), '')
                   from status_indexer.queue",
                &[],
            )
            .await
            .expect("the queue exists")
            .get(0);
        assert_eq!(queued, expected, "{change}");
    }
}
