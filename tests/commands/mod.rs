//! The command line, as people and programs use it.

mod backfill;
mod cli;
mod doctor;
mod environment;
mod explain;
mod man;
mod operator;
mod secrets;
mod tls;
mod verify;
mod verify_standby;
mod version;

use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::writer::Writer;

/// Runs a command on the database; its exit code and what it printed.
async fn command(database: &Database, args: &[&str]) -> (Option<i32>, String) {
    let output = Launch::on(database).args(args).output().await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), text)
}

/// Inserts finished runs: one in ten has failed, one in 25 has no evidence, none has a heartbeat.
async fn insert_history(writer: &Writer, runs: i32) {
    writer.insert_flow("F").await;
    writer
        .client()
        .batch_execute(&format!(
            "insert into runs_v3 (flow_id, run_number, user_name, ts_epoch, tags, system_tags)
             select 'F', n, 'u', n, '[]', '[]' from generate_series(1, {runs}) n;
             insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value,
                                      type, user_name, ts_epoch, tags, system_tags)
             select 'F', n, 'end', 1, 'attempt_ok', case when n % 10 = 0 then 'False' else 'True' end,
                    'attempt_ok', 'u', n, '[]', '[]'
               from generate_series(1, {runs}) n
              where n % 25 <> 0;"
        ))
        .await
        .expect("plain inserts");
}

/// How many stored statuses differ from the definition.
async fn drift(writer: &Writer) -> i64 {
    writer
        .client()
        .query_one(
            "select coalesce(jsonb_array_length(drift), 0)::int8 from status_indexer.compare('', -1, 1000000)",
            &[],
        )
        .await
        .expect("the indexer is installed")
        .get(0)
}
