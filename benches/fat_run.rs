//! The cost of evaluating a run with very many metadata rows.
//!
//! An evaluation must use the index that contains the step's name. With the index ordered by time,
//! which not every installation has, it would read all of the run's rows.

use anyhow::Result;
use tokio_postgres::Client;

use crate::dataset::running_runs;
use crate::env::BenchEnv;
use crate::report::{Durations, Report, Target};

const FLOW: &str = "FatFlow";

/// Metadata rows of the run.
const ROWS: i64 = 20_000;

const CALLS: usize = 200;

/// A thousand tasks of a foreach before one end task.
const METADATA: &str = "\
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type,
                         user_name, ts_epoch, tags, system_tags)
select $1,
       $2::bigint,
       case when i > $3::bigint - 20 then 'end' else 'train' end,
       i / 20,
       (array['attempt', 'origin-run-id', 'ds-type', 'ds-root', 'attempt_ok', 'attempt-done'])[1 + i % 6],
       case i % 6 when 4 then 'True' else '0' end,
       'field',
       'tester',
       extract(epoch from now())::bigint * 1000 + i,
       '[]',
       '[]'
  from generate_series(1, $3::bigint) i";

pub(crate) async fn run(env: &mut BenchEnv) -> Result<Report> {
    let mut report = Report::new(
        "fat-run",
        format!(
            "{ROWS} metadata rows, {CALLS} calls each, {} runs",
            env.settings.runs
        ),
    );
    let (database, daemon) = env.indexed_dataset().await?;
    daemon.terminate().await;
    let client = database.client().await;
    let fat = running_runs(&client, FLOW, 1, 0).await?;
    let thin = running_runs(&client, FLOW, 1, 0).await?;
    for (run, rows) in [(fat, ROWS), (thin, 20)] {
        client
            .execute(METADATA, &[&FLOW, &i64::from(run), &rows])
            .await?;
    }
    client.batch_execute("vacuum analyze metadata_v3").await?;
    client
        .batch_execute("set jit = off; set search_path = pg_catalog, pg_temp")
        .await?;
    let with = apply(&client, fat).await?;
    let of_thin = apply(&client, thin).await?;
    // Dropped in this transaction only, which is rolled back.
    client
        .batch_execute("begin; drop index public.metadata_v3_idx_flow_run_ts_id_desc")
        .await?;
    let without = apply(&client, fat).await?;
    client.batch_execute("rollback").await?;
    report.figure(
        "server time of apply, median",
        with.quantile_ms(0.5),
        "ms",
        Target::Below(1.0),
    );
    report.record("server time of apply, p99", with.quantile_ms(0.99), "ms");
    let what = "without the index by time, median";
    report.figure(what, without.quantile_ms(0.5), "ms", Target::Below(1.0));
    report.record("a run with 20 rows, median", of_thin.quantile_ms(0.5), "ms");
    Ok(report)
}

/// Execution times as the server reports them.
async fn apply(client: &Client, run: i32) -> Result<Durations> {
    let explain = format!(
        "explain (analyze, timing off, format json) \
         select * from status_indexer.apply(array['{FLOW}'], array[{run}]::bigint[], null)"
    );
    let mut times = Durations::new();
    for _ in 0..CALLS {
        let row = client.query_one(&explain, &[]).await?;
        let plan: serde_json::Value = row.get(0);
        times.record_ms(plan[0]["Execution Time"].as_f64().unwrap_or(f64::NAN));
    }
    Ok(times)
}
