//! A transaction that stays open for minutes keeps every dead row: neither claims nor reads may pass them.
//!
//! Asserts numbers of buffers and scans, which do not depend on the speed of the machine.

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Client;

use super::{command, leads, queued, run};
use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::wait::eventually;

const TIMEOUT: Duration = Duration::from_secs(120);

const EVENTS: i64 = 100_000;

/// The pages that the queue's table and index have after so many events: about 1,000.
const MOST_BUFFERS: i64 = 100;

/// All buffers that a statement used.
async fn buffers(client: &Client, statement: &str) -> i64 {
    let explain = format!("explain (analyze, buffers, format json) {statement}");
    let row = client.query_one(&explain, &[]).await;
    let plan: Value = row.expect("the statement runs").get(0);
    let node = &plan[0]["Plan"];
    ["Shared Hit Blocks", "Shared Read Blocks"]
        .iter()
        .filter_map(|name| node[name].as_i64())
        .sum()
}

async fn number(client: &Client, statement: &str) -> i64 {
    let row = client.query_one(statement, &[]).await;
    row.expect("the statement runs").get(0)
}

/// Waits until the daemon has read the queue by its index, again and again.
async fn sampler_reads(client: &Client) {
    const READS: &str = "\
select idx_scan::int8
  from pg_stat_user_tables
 where relid = 'status_indexer.queue'::regclass";
    let first = number(client, READS).await;
    eventually(TIMEOUT, "the sampler reads the queue", async || {
        number(client, READS).await > first + 10
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_snapshot_makes_neither_claims_nor_reads_pass_the_dead_rows() {
    const PAGE: &str = "\
select run_number
  from status_indexer.runs
 where flow_id = 'F'
   and status = 'failed'
 order by ts_epoch desc, run_number desc
 limit 50";
    const SCANS: &str = "\
select coalesce(seq_scan, 0)::int8
  from pg_stat_user_tables
 where relid = 'status_indexer.queue'::regclass";
    let database = Database::fresh().await;
    let (writer, holder) = (database.writer().await, database.client().await);
    let client = database.client().await;
    // Its own scans of the queue must not be counted, which the server may do some time after them.
    let observer = database.client().await;
    run(&observer, "set enable_seqscan = off").await;
    command(&database, "migrate").await;
    writer.insert_flow("F").await;
    let now = writer.now_secs().await;
    let runs = format!(
        "insert into runs_v3 (flow_id, user_name, ts_epoch, tags, system_tags, last_heartbeat_ts)
         select 'F', 'u', n, '[]', '[]', case when n % 2 = 0 then {now} end
           from generate_series(1, 1000) n"
    );
    run(&client, &runs).await;
    let daemon = Launch::on(&database)
        .env("RUN_INACTIVE_CUTOFF_TIME", "86400")
        .start()
        .await;
    eventually(TIMEOUT, "it leads", async || leads(&daemon).await).await;
    eventually_no_drift(&client).await;
    run(&client, "analyze runs_v3").await;

    // What a report or a dump does.
    run(
        &holder,
        "begin isolation level repeatable read; select count(*) from runs_v3",
    )
    .await;
    for _ in 0..10 {
        // What the triggers insert.
        let events = format!(
            "insert into status_indexer.queue (flow_id, run_number)
             select 'F', 1 + n % 1000 from generate_series(1, {}) n;
             select status_indexer.notify_worker()",
            EVENTS / 10
        );
        run(&client, &events).await;
        eventually(TIMEOUT, "they are applied", async || {
            queued(&observer).await == 0
        })
        .await;
    }
    let dead = number(
        &client,
        "select pg_relation_size('status_indexer.queue') / 8192 + pg_relation_size('status_indexer.queue_pkey') / 8192",
    )
    .await;
    println!("{dead} pages of dead rows");
    assert!(dead > 5 * MOST_BUFFERS, "{dead}");
    eventually(TIMEOUT, "the first id is published", async || {
        let first = "select first_queue_id from status_indexer.state";
        number(&client, first).await > EVENTS
    })
    .await;

    for claim in [
        "select * from status_indexer.drain(0, 100, null)".to_owned(),
        format!(
            "select * from status_indexer.drain({}, 100, null)",
            EVENTS - 2000
        ),
    ] {
        let used = buffers(&client, &claim).await;
        println!("{used} buffers: {claim}");
        assert!(used <= MOST_BUFFERS, "{used} buffers: {claim}");
    }
    // The second call does not load the catalogue.
    buffers(&client, PAGE).await;
    let used = buffers(&client, PAGE).await;
    println!("{used} buffers: a page by status");
    assert!(used <= MOST_BUFFERS, "{used} buffers for a page");

    // The daemon itself, while events continue: no statement for each event reads the whole table.
    let before = number(&client, SCANS).await;
    for _ in 0..20 {
        let now = writer.now_ms().await;
        let id = writer.insert_run("F", Some(now / 1000)).await;
        writer.attempt_ok("F", id, "True", now).await;
        eventually_status(&writer, "F", id, "completed").await;
    }
    // The sampler has read the depth of the queue twice.
    for _ in 0..2 {
        sampler_reads(&client).await;
    }
    let scans = number(&client, SCANS).await - before;
    // `apply` scans it for a run that another transaction has locked, and a backfill once at its end, which
    // the server may count later. What is done for each event would be counted at least twenty times.
    assert!(scans <= 3, "{scans} scans of the whole queue");
    run(&holder, "commit").await;
    eventually_no_drift(&client).await;
}
