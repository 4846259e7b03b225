//! The dataset of a large installation: one flow has most of the runs, two hundred have the rest.
//!
//! Owns the shape of the runs. Of a thousand, 900 have completed, 60 failed in their end step, 35
//! crashed and 5 are running. Nearly all running ones are among the newest hundredth, a few are far
//! older, and most of these are running because their end step is being retried. Each run has
//! twelve metadata rows and eight system tags. Runs of all flows are interleaved, as in production.
//! The same seed makes the same runs. The secondary indexes are built after loading, which is twice
//! as fast.

use anyhow::Result;
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::Settings;
use testkit::database::Database;

/// The flow that has the most runs.
pub(crate) const BIG_FLOW: &str = "BigFlow";

const FLOWS: &str = "\
insert into flows_v3 (flow_id, user_name, ts_epoch, tags, system_tags)
select flow_id, 'tester', 0, '[]', '[]'
  from (select 'BigFlow' as flow_id
         union all
        select 'Flow' || i from generate_series(0, 199) i) f";

/// One run a minute, the newest two days old, so that no crashed run is younger than the cutoff.
/// `$1` is the number of runs, `$2` the seed.
const KINDS: &str = "\
create unlogged table bench_kind as
select i::int as run_number,
       case when i % 6 = 0 then 'Flow' || (abs(hashint8extended(i, $2::bigint)) / 1000 % 200)
            else 'BigFlow'
       end as flow_id,
       ((extract(epoch from now())::bigint - 2 * 86400) / 60 * 60 - ($1::bigint - i) * 60) * 1000 as ts,
       (60 + abs(hashint8extended(i, $2::bigint + 1)) % 3600)::int as secs,
       case
         -- All but a few of the running runs are new.
         when i > $1::bigint * 0.99 and u % 2 = 0 then 'running'
         when u < 9045 then 'completed'
         when u < 9645 then 'failed'
         when u < 9996 then 'crashed'
         when u < 9997 then 'running'
         else 'retrying'
       end as kind
  from (select i::bigint as i, abs(hashint8extended(i::bigint, $2::bigint + 2)) % 10000 as u
          from generate_series(1, $1::bigint) i) s";

const RUNS: &str = "\
insert into runs_v3 (flow_id, run_number, user_name, ts_epoch, tags, system_tags, last_heartbeat_ts)
select flow_id,
       run_number,
       'user' || run_number % 50,
       ts,
       '[]',
       jsonb_build_array('user:user' || run_number % 50, 'metaflow_version:2.12.' || run_number % 40,
                         'python_version:3.11.' || run_number % 9, 'runtime:dev',
                         'project:p' || run_number % 20, 'project_branch:user.user' || run_number % 50,
                         'date:' || to_char(to_timestamp(ts / 1000), 'YYYY-MM-DD'),
                         'metaflow_r_version:'),
       case when kind = 'running' then extract(epoch from now())::bigint else ts / 1000 + secs end
  from bench_kind
 order by run_number";

/// Six rows of the first step's task and six of the last step's. The last step is `end`, unless the
/// run did not reach it.
const METADATA: &str = "\
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, user_name,
                         ts_epoch, tags, system_tags)
select k.flow_id,
       k.run_number,
       t.step,
       k.run_number * 2::bigint + (t.step <> 'start')::int,
       t.field,
       case t.field
         when 'attempt' then '0'
         when 'attempt_ok' then case when t.step = 'end' and k.kind <> 'completed' then 'False' else 'True' end
         when 'ds-root' then 's3://bucket/metaflow/data/' || k.flow_id
         else 'a-value-of-some-length'
       end,
       case t.field when 'attempt_ok' then 'internal_attempt_status' else t.field end,
       'user' || k.run_number % 50,
       k.ts + case when t.step = 'start' then 0 else k.secs * 500 end + t.place * 100,
       '[\"attempt_id:0\"]',
       '[]'
  from bench_kind k
 cross join lateral (
       select f.place,
              f.field,
              case
                when f.place <= 6 then 'start'
                when k.kind in ('crashed', 'running') then 'train'
                else 'end'
              end as step
         from unnest(array['attempt', 'origin-run-id', 'ds-type', 'ds-root', 'attempt_ok', 'attempt-done',
                           'attempt', 'origin-run-id', 'ds-type', 'ds-root',
                           case when k.kind in ('crashed', 'running') then 'code-package' else 'attempt_ok' end,
                           case when k.kind = 'retrying' then 'attempt' else 'attempt-done' end])
              with ordinality f (field, place)) t
 order by k.run_number, t.place";

/// For each index that no constraint needs: the statement that drops it and the one that rebuilds
/// it.
const INDEXES: &str = "\
select format('drop index %s', i.indexrelid::regclass), pg_get_indexdef(i.indexrelid)
  from pg_index i
 where i.indrelid in ('runs_v3'::regclass, 'metadata_v3'::regclass)
   and not exists (select from pg_constraint c where c.conindid = i.indexrelid)";

const FINISH: &str = "\
select setval('runs_v3_run_number_seq', (select max(run_number) from runs_v3));
drop table bench_kind;";

/// Fills a database that has upstream's tables, still empty.
pub(crate) async fn generate(database: &Database, settings: &Settings) -> Result<()> {
    let client = database.client().await;
    let big: i64 = settings.runs;
    let all = big + big / 5;
    eprintln!(
        "dataset: {big} runs in {BIG_FLOW} and {} in 200 flows",
        all - big
    );
    let start = Instant::now();
    // A crash would lose nothing of value yet.
    client
        .batch_execute(
            "set synchronous_commit = off; set jit = off; set max_parallel_workers_per_gather = 0",
        )
        .await?;
    let rows = client.query(INDEXES, &[]).await?;
    let indexes: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for (drop, _) in &indexes {
        client.batch_execute(drop).await?;
    }
    client.batch_execute(FLOWS).await?;
    client.execute(&kinds(all, settings.seed), &[]).await?;
    client.batch_execute("analyze bench_kind").await?;
    timed(&client, "runs", RUNS, start).await?;
    timed(&client, "metadata", METADATA, start).await?;
    for (_, create) in &indexes {
        client.batch_execute(create).await?;
    }
    client.batch_execute(FINISH).await?;
    eprintln!("  indexes after {:.0} s", start.elapsed().as_secs_f64());
    client.batch_execute("vacuum (analyze)").await?;
    client.batch_execute("checkpoint").await?;
    eprintln!("  vacuumed after {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// `create table as` takes no parameters.
fn kinds(runs: i64, seed: i64) -> String {
    KINDS
        .replace("$1", &runs.to_string())
        .replace("$2", &seed.to_string())
}

async fn timed(client: &Client, what: &str, insert: &str, start: Instant) -> Result<()> {
    let rows = client.execute(insert, &[]).await?;
    eprintln!(
        "  {rows} rows of {what} after {:.0} s",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Adds a flow with `count` runs whose heartbeats are `age_secs` old, and returns the first run's
/// number; the others follow it. Triggers are disabled meanwhile, so that no event is queued.
pub(crate) async fn running_runs(
    client: &Client,
    flow: &str,
    count: i64,
    age_secs: i64,
) -> Result<i32> {
    const INSERT: &str = "\
insert into runs_v3 (flow_id, user_name, ts_epoch, tags, system_tags, last_heartbeat_ts)
select $1, 'tester', extract(epoch from now())::bigint * 1000, '[]',
       '[\"user:tester\", \"metaflow_version:2.12.5\", \"python_version:3.11.4\", \"runtime:dev\",
         \"project:p1\", \"project_branch:user.tester\", \"date:2025-01-01\", \"metaflow_r_version:\"]',
       extract(epoch from now())::bigint - $3::bigint
  from generate_series(1, $2::bigint)
returning run_number";
    client
        .execute(
            "insert into flows_v3 (flow_id, ts_epoch) values ($1, 0) on conflict do nothing",
            &[&flow],
        )
        .await?;
    client
        .batch_execute("set session_replication_role = replica")
        .await?;
    let rows = client.query(INSERT, &[&flow, &count, &age_secs]).await?;
    client
        .batch_execute("reset session_replication_role")
        .await?;
    let first = rows.iter().map(|row| row.get::<_, i32>(0)).min();
    anyhow::Context::context(first, "at least one run was asked for")
}
