//! The plans of pages of the view.
//!
//! Compares the pages that a plan reads, not times: a plan that reads all runs of a status and sorts
//! them reads hundreds.

use tokio_postgres::Client;

use super::run;
use testkit::daemon::Launch;
use testkit::database::Database;

/// Runs of one large flow, a few of which have failed, long ago; and small flows. No deadline passes.
const RUNS: &str = "\
set session_replication_role = replica;
insert into flows_v3 (flow_id, ts_epoch)
select case i when 0 then 'Large' else 'Small' || i end, 0
  from generate_series(0, 500) i;
insert into runs_v3 (flow_id, run_number, user_name, ts_epoch, tags, system_tags, last_heartbeat_ts, run_status)
select case when i % 10 = 0 then 'Small' || 1 + i / 10 % 500 else 'Large' end,
       i, repeat('u', 100), i, '[]', '[]', extract(epoch from now())::bigint,
       case when i > 20000 - 200 then 'running'
            when i < 10000 and i % 9 = 0 then 'failed'
            else 'completed'
       end
  from generate_series(1, 20000) i;
update status_indexer.state
   set valid_since = now(),
       deadlines_from = now() - interval '10 seconds',
       deadlines_until = now() + interval '6000 seconds';
set session_replication_role = origin";

/// Conditions on the status: the text, and its parameters as SQL with their types.
const CONDITIONS: [(&str, &str, &str); 10] = [
    ("status = 'running'", "", ""),
    ("status = 'failed'", "", ""),
    ("status in ('failed', 'running')", "", ""),
    ("(status = 'running' or status = 'failed')", "", ""),
    ("status <> 'completed'", "", ""),
    ("status = any ('{running,completed,failed}')", "", ""),
    ("status = $2", ", text", ", 'failed'"),
    (
        "(status = $2 or status = $3)",
        ", text, text",
        ", 'failed', 'running'",
    ),
    ("status = any ($2)", ", text[]", ", '{failed,running}'"),
    ("status in ($2, $3)", ", text, text", ", 'failed', 'none'"),
];

/// Numbers of flows that the statistics give, from which the planner expects the runs of each.
const FLOWS: [i32; 4] = [2, 50, 500, 10_000];

const LIMIT: i32 = 20;

/// Blocks that a page and the catalog of its objects may need.
const MAX_BLOCKS: f64 = 150.0;

/// What the last of seven executions returned, and the blocks it read.
async fn execute(client: &Client, condition: &str, types: &str, values: &str) -> (f64, f64) {
    let prepare = format!(
        "prepare page (text{types}) as
         select * from status_indexer.runs where flow_id = $1 and {condition}
          order by ts_epoch desc, run_number desc limit {LIMIT}"
    );
    run(client, &prepare).await;
    let call = format!("execute page ('Large'{values})");
    // PostgreSQL compares a generic plan with five others before it keeps one.
    for _ in 0..6 {
        run(client, &call).await;
    }
    let explain = format!("explain (analyze, buffers, format json) {call}");
    let row = client.query_one(&explain, &[]).await.expect("a plan");
    let plan = &row.get::<_, serde_json::Value>(0)[0]["Plan"];
    run(client, "deallocate page").await;
    let number = |name: &str| plan[name].as_f64().expect(name);
    (
        number("Actual Rows"),
        number("Shared Hit Blocks") + number("Shared Read Blocks"),
    )
}

#[tokio::test]
async fn a_page_by_status_reads_ranges_of_the_indexes() {
    let database = Database::fresh().await;
    let launch = Launch::on(&database).args(&["migrate", "up", "--ui"]);
    launch.succeed().await;
    let client = database.client().await;
    run(&client, RUNS).await;
    run(&client, "vacuum runs_v3").await;
    for flows in FLOWS {
        run(
            &client,
            &format!(
                "alter table runs_v3 alter flow_id set (n_distinct = {flows});
                 analyze runs_v3, status_indexer.queue, status_indexer.state"
            ),
        )
        .await;
        for mode in ["auto", "force_custom_plan", "force_generic_plan"] {
            run(&client, &format!("set plan_cache_mode = {mode}")).await;
            for (condition, types, values) in CONDITIONS {
                let (rows, blocks) = execute(&client, condition, types, values).await;
                assert!(
                    rows == f64::from(LIMIT) && blocks < MAX_BLOCKS,
                    "{condition}, {mode}, {flows} flows: {rows} rows, {blocks} blocks"
                );
            }
        }
    }
}
