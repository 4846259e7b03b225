//! The cost of pages: the plans of the statements that the API sends, from the log of the server.

use std::time::Duration;

use serde_json::Value;

use super::server::ApiServer;
use testkit::database::shared;
use testkit::wait::eventually_some;

/// Blocks that a page may read: one per row, and the descent of each index range.
const BUDGET: i64 = 300;

/// Logs plans from the next session on.
const TELL: &str = "\
do $$
declare
  setting text;
begin
  foreach setting in array array[
    'session_preload_libraries = ''auto_explain''', 'auto_explain.log_min_duration = 0',
    'auto_explain.log_analyze = on', 'auto_explain.log_buffers = on', 'auto_explain.log_timing = off',
    'auto_explain.log_format = ''json''']
  loop
    execute format('alter database %I set %s', current_database(), setting);
  end loop;
end
$$";

/// 60,000 runs of one flow. Few have a status other than completed, and these are old.
const ROWS: &str = "\
set session_replication_role = replica;
insert into flows_v3 (flow_id, user_name, ts_epoch, tags, system_tags)
values ('F', 't', 1, '[]', '[]');
insert into runs_v3 (flow_id, run_number, user_name, ts_epoch, tags, system_tags, run_status)
select 'F', i, 'u', i / 3, '[\"a\"]', '[\"user:u\", \"runtime:dev\", \"python_version:3.12\"]', 'completed'
  from generate_series(1, 60000) i;";

const RARE: &str = "\
update runs_v3 set run_status = 'failed' where run_number in (5, 700, 30000);
update runs_v3 set run_status = 'running' where run_number between 40000 and 40200;";

/// The plan of the API's last statement on this database.
async fn last_plan(server: &ApiServer) -> Value {
    let postgres = shared().await;
    let place = format!("] {} ", server.database.name());
    eventually_some(Duration::from_secs(10), "the plan is logged", async || {
        let log = postgres.log_tail(2000);
        let mut entries: Vec<String> = Vec::new();
        for line in log.lines() {
            if line.starts_with('\t') {
                // The first line of the tail may be incomplete.
                if let Some(entry) = entries.last_mut() {
                    entry.push_str(line);
                    entry.push('\n');
                }
            } else {
                entries.push(format!("{line}\n"));
            }
        }
        let entry = entries.into_iter().rev().find(|entry| {
            entry.contains(&place) && entry.contains("plan:") && entry.contains("-- api.runs")
        })?;
        serde_json::from_str(entry.split_once('\n')?.1).ok()
    })
    .await
}

fn blocks(plan: &Value) -> i64 {
    let count = |name: &str| plan["Plan"][name].as_i64().expect("buffers are asked for");
    count("Shared Hit Blocks") + count("Shared Read Blocks")
}

/// The types of a plan's nodes.
fn nodes(plan: &Value) -> Vec<String> {
    let mut all = vec![plan["Node Type"].to_string()];
    if let Some(name) = plan.get("Index Name") {
        all.push(name.to_string());
    }
    for child in plan["Plans"].as_array().into_iter().flatten() {
        all.extend(nodes(child));
    }
    all
}

const STATUSES: [&str; 9] = [
    "status=completed",
    "status=running",
    "status=failed",
    "status=null",
    "status=running,failed",
    "status:ne=failed",
    "status:ne=running",
    "status:ne=completed",
    "status=running,completed,failed",
];

/// First and deep pages of every combination of statuses, after the second execution of each
/// statement, with the statistics of this moment.
async fn check_every_page(server: &ApiServer, when: &str) {
    let cursors = [
        None,
        Some(r#"{"ts_epoch": 19000, "run_number": 57000}"#),
        Some(r#"{"ts_epoch": 10100, "run_number": 30300}"#),
        Some(r#"{"ts_epoch": 3, "run_number": 9}"#),
    ];
    let mut worst = 0;
    for status in STATUSES {
        for cursor in cursors {
            let cursor = cursor.map_or_else(String::new, |json| {
                use base64::Engine as _;
                let text = base64::engine::general_purpose::STANDARD.encode(json);
                format!("&_cursor={}", text.replace('=', "%3D"))
            });
            let path = format!("/flows/F/runs?{status}{cursor}");
            for _ in 0..2 {
                assert_eq!(server.get(&path).await.code, 200);
            }
            let plan = last_plan(server).await;
            let blocks = blocks(&plan);
            assert!(
                blocks <= BUDGET,
                "{when}: {path} read {blocks} blocks: {:?}\n{plan:#}",
                nodes(&plan["Plan"])
            );
            worst = worst.max(blocks);
        }
    }
    println!("{when}: at most {worst} blocks");
}

/// The statement for an exact column, and the one that evaluates pending runs.
async fn check_both_statements(server: &ApiServer, when: &str) {
    const EVENT: &str =
        "insert into status_indexer.queue (flow_id, run_number) values ('F', 30000)";
    check_every_page(server, &format!("{when}, no event")).await;
    server.sql(EVENT).await;
    check_every_page(server, &format!("{when}, an event")).await;
    server.sql("delete from status_indexer.queue").await;
}

#[tokio::test]
async fn a_page_reads_few_blocks_for_every_status_depth_and_statistics() {
    let server = ApiServer::with(
        status_indexer::api::Limits {
            // One connection, so that its statements are executed often.
            pool_max: 1,
            ..super::server::LIMITS
        },
        status_indexer::pg::SessionMode::Session,
    )
    .await;
    server.sql(TELL).await;
    server
        .sql("alter table runs_v3 set (autovacuum_enabled = off)")
        .await;
    server.sql(ROWS).await;
    check_every_page(&server, "never analyzed").await;
    // With statistics of one flow and one status, a condition on these seems to save nothing.
    server.sql("analyze runs_v3").await;
    check_both_statements(&server, "one status known").await;
    server.sql(RARE).await;
    check_both_statements(&server, "rare statuses not known yet").await;
    server.sql("vacuum analyze runs_v3").await;
    check_both_statements(&server, "all known").await;
}
