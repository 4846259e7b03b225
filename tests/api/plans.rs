//! What pages cost, as the server itself tells of the statements that the API sends.

use std::time::Duration;

use serde_json::Value;

use super::server::Site;
use testkit::database::shared;
use testkit::wait::eventually_some;

/// Blocks that a page may read: its rows may lie in as many, and each range has its descent.
const BUDGET: i64 = 300;

/// Plans go to the server's log from the next session on.
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

/// 60,000 runs of one flow. Those of other statuses than completed are few and far down.
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
async fn last_plan(site: &Site) -> Value {
    let server = shared().await;
    let place = format!("] {} ", site.database.name());
    eventually_some(Duration::from_secs(10), "the plan is logged", async || {
        let log = server.log_tail(2000);
        let mut entries: Vec<String> = Vec::new();
        for line in log.lines() {
            if line.starts_with('\t') {
                // What the tail begins with may lack its own beginning.
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

/// The names of nodes, to tell a plan.
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

/// First and deep pages of every combination of statuses, past the tenth execution of each
/// statement, on statistics of the given moment.
async fn every_page_is_cheap(site: &Site, when: &str) {
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
            for _ in 0..11 {
                assert_eq!(site.get(&path).await.code, 200);
            }
            let plan = last_plan(site).await;
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

#[tokio::test]
async fn a_page_reads_few_blocks_whatever_the_status_the_depth_and_the_statistics() {
    let site = Site::with(
        status_indexer::api::Limits {
            // One connection, so that its statements are executed often.
            pool_max: 1,
            ..super::server::LIMITS
        },
        status_indexer::pg::SessionMode::Session,
    )
    .await;
    site.sql(TELL).await;
    site.sql("alter table runs_v3 set (autovacuum_enabled = off)")
        .await;
    site.sql(ROWS).await;
    every_page_is_cheap(&site, "never analyzed").await;
    // The statistics know one flow and one status: nothing seems to be gained by looking for one.
    site.sql("analyze runs_v3").await;
    every_page_is_cheap(&site, "one status known").await;
    site.sql(RARE).await;
    every_page_is_cheap(&site, "rare statuses not known yet").await;
    site.sql("vacuum analyze runs_v3").await;
    every_page_is_cheap(&site, "all known").await;
}
