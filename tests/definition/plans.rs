//! How much an evaluation reads of a run with very many metadata rows.

use serde_json::Value as Json;
use testkit::database::Database;
use tokio_postgres::Client;

use super::migrated;

/// Buffers that a statement reads once its plan is cached, as in a daemon.
async fn buffers(client: &Client, statement: &str) -> i64 {
    for _ in 0..8 {
        client
            .batch_execute(statement)
            .await
            .expect("the statement runs");
    }
    let explain = format!("explain (analyze, buffers, format json) {statement}");
    let row = client
        .query_one(&explain, &[])
        .await
        .expect("the statement runs");
    let plan: Json = row.get(0);
    let plan = &plan[0]["Plan"];
    let count = |kind: &str| plan[kind].as_i64().expect("buffers were asked for");
    count("Shared Hit Blocks") + count("Shared Read Blocks")
}

#[tokio::test]
async fn a_run_with_20_000_metadata_rows_is_evaluated_by_reading_a_few_pages() {
    let database = Database::fresh().await;
    let client = migrated(&database).await;
    let fill = "\
insert into flows_v3 (flow_id, ts_epoch) values ('F', 0);
insert into runs_v3 (flow_id, run_number, ts_epoch) select 'F', n, 0 from generate_series(1, 300) n;
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
select 'F', r, s, t, f, 'True', f, 1000 * t
  from generate_series(1, 300) r,
       lateral (select 'step_' || t % 10 as s, t from generate_series(1, case r when 7 then 4000 else 1 end) t) w,
       unnest(array['attempt', 'attempt_ok', 'origin', 'runtime', 'ds-type']) f;
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
select 'F', r, 'end', 9000, f, 'True', f, 9000000
  from generate_series(1, 300) r, unnest(array['attempt', 'attempt_ok', 'origin', 'runtime']) f";
    client
        .batch_execute(fill)
        .await
        .expect("rows can be written");
    let count: i64 = client
        .query_one("select count(*) from metadata_v3 where run_number = 7", &[])
        .await
        .expect("the table is there")
        .get(0);
    assert!(count > 20_000);
    let calls = [
        ("select * from status_indexer.evidence('F', 7)", 100),
        (
            "select * from status_indexer.apply(array['F'], array[7::bigint], null)",
            100,
        ),
        ("select status_indexer.explain('F', '7')", 100),
        // A scan passes the index entries of all rows, but reads none of these rows.
        ("select * from status_indexer.compare('F', 6, 1)", 500),
    ];
    let newest = "metadata_v3_idx_flow_run_ts_id_desc";
    // Most runs are small, so that a plan that reads a whole run looks cheap to the planner.
    for (what, change) in [
        ("as upstream left it", "vacuum analyze".to_owned()),
        (
            "without upstream's newest index",
            format!("drop index {newest}; analyze"),
        ),
        (
            "with an index on the time",
            format!(
                "create index {newest} on metadata_v3 (flow_id, run_number, ts_epoch, id); vacuum analyze"
            ),
        ),
    ] {
        for part in change.split("; ") {
            client.batch_execute(part).await.expect("it can be changed");
        }
        for (call, most) in calls {
            let touched = buffers(&client, call).await;
            assert!(touched < most, "{what}: {call} touched {touched} buffers");
        }
    }
}

/// The definition's functions are inlined wherever they are used: none of them is a node or a call
/// in the plan. A function that is called costs more than all the rest of an evaluation.
#[tokio::test]
async fn the_definition_is_inlined_into_its_callers() {
    const EXPLAIN: &str = "\
explain (verbose, costs off)
select status_indexer.reason(e.ok, e.ok_ts, e.retry_ts, r.last_heartbeat_ts, 1.5, 360),
       status_indexer.status(status_indexer.reason(e.ok, e.ok_ts, e.retry_ts, r.last_heartbeat_ts, 1.5, 360)),
       status_indexer.next_change(r.run_status, r.last_heartbeat_ts, 1.5, 360),
       status_indexer.deadline_distance(r.run_status, r.last_heartbeat_ts, 1.5, 360),
       (select sum(b.ok_ts)
          from status_indexer.newest_attempt_ok_between(r.flow_id, 1, 2) b)
  from runs_v3 r
 cross join lateral status_indexer.evidence(r.flow_id, r.run_number) e";
    let database = Database::fresh().await;
    let client = migrated(&database).await;
    let rows = client.query(EXPLAIN, &[]).await.expect("it is planned");
    let plan: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let plan = plan.join("\n");
    // On one branch for each of the two fields; this one function is called on purpose.
    assert!(plan.contains("status_indexer.costly_equals("), "{plan}");
    let calls = plan.matches("status_indexer.").count();
    assert_eq!(
        calls,
        plan.matches("status_indexer.costly_equals(").count(),
        "{plan}"
    );
    assert!(!plan.contains("Function Scan"), "{plan}");
}
