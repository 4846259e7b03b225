//! Filling the column of a site that has a million runs, against the plainest statement that does it.
//!
//! Both write the same rows, those that are not `completed`, of a table that is packed anew before
//! each: `update ... from` in one statement with the definition computed set-wise, and the
//! `backfill` command. Heartbeats of healthy runs are written all the while, to see whom it keeps
//! waiting.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::baseline;
use crate::dataset::running_runs;
use crate::latency::now_ms;
use crate::load::open_loop;
use crate::report::{Durations, Report, Target};
use crate::site::{LONG_CUTOFF_SECS, Site, clients, command, cost, forget_costs};
use crate::support::database::Database;
use crate::sweep::HEARTBEAT;

const FLOW: &str = "Alive";

/// Runs whose heartbeats are written meanwhile, and how many heartbeats a second.
const ALIVE: i64 = 2_000;
const HEARTBEATS: f64 = 200.0;

const SIZES: &str = "\
select pg_table_size('runs_v3')::float8 / 1048576, pg_indexes_size('runs_v3')::float8 / 1048576";

pub(crate) async fn run(site: &mut Site) -> Result<Report> {
    let settings = site.settings.clone();
    let statements = site.statements;
    let mut report = Report::new(
        "backfill",
        format!(
            "{} runs and a fifth as many, {HEARTBEATS} heartbeats/s meanwhile",
            settings.runs
        ),
    );
    let database = site.dataset().await?;
    let client = database.client().await;
    let first = running_runs(&client, FLOW, ALIVE, 0).await?;

    start_anew(database, &client).await?;
    let before = beside(database, first, async || {
        sleep(Duration::from_secs(10)).await;
        Ok(())
    })
    .await?;
    let plain = measured(&client, async || {
        client.batch_execute("set jit = off").await?;
        client
            .execute(baseline::SPARSE_UPDATE, &[&i64::from(LONG_CUTOFF_SECS)])
            .await?;
        Ok(())
    })
    .await?;

    start_anew(database, &client).await?;
    if statements {
        forget_costs(&client).await?;
    }
    let mut peak = 0.0;
    let mut filled = Measured::default();
    let during = beside(database, first, async || {
        filled = measured(&client, async || {
            peak = command(database, &["backfill"]).await?;
            Ok(())
        })
        .await?;
        Ok(())
    })
    .await?;

    report.record("one plain statement, alone", plain.secs, "s");
    report.record("backfill, beside the heartbeats", filled.secs, "s");
    let ratio = filled.secs / plain.secs;
    report.figure("backfill / plain statement", ratio, "", Target::Below(1.3));
    report.record("WAL, plain statement", plain.wal_mib, "MiB");
    report.record("WAL, backfill", filled.wal_mib, "MiB");
    report.record("heartbeats' p99 before", before.quantile_ms(0.99), "ms");
    report.record("heartbeats' p99 meanwhile", during.quantile_ms(0.99), "ms");
    let ratio = during.quantile_ms(0.99) / before.quantile_ms(0.99);
    report.figure(
        "heartbeats' p99, meanwhile / before",
        ratio,
        "",
        Target::Below(2.0),
    );
    report.record("heartbeats' longest meanwhile", during.max_ms(), "ms");
    if statements {
        let apply = cost(&client, "apply.keys").await?;
        let compare = cost(&client, "runs.compare").await?;
        for (what, cost) in [("apply", &apply), ("compare", &compare)] {
            let what = |part: &str| format!("server time of {what}, {part}");
            report.record(&what("all calls"), cost.total_ms / 1000.0, "s");
            report.record(&what("one"), cost.total_ms / cost.calls, "ms");
        }
        report.figure(
            "longest apply call, so locks held",
            apply.max_ms,
            "ms",
            Target::Below(100.0),
        );
    }
    report.figure(
        "memory of the command, peak",
        peak,
        "MiB",
        Target::Below(64.0),
    );
    let sizes = client.query_one(SIZES, &[]).await?;
    report.record("table afterwards", sizes.get(0), "MiB");
    report.record("its indexes", sizes.get(1), "MiB");
    let row = client
        .query_one(baseline::COUNT_WRONG, &[&i64::from(LONG_CUTOFF_SECS)])
        .await?;
    #[expect(clippy::cast_precision_loss, reason = "few are wrong")]
    report.figure(
        "statuses wrong",
        row.get::<_, i64>(0) as f64,
        "",
        Target::Below(1.0),
    );
    Ok(report)
}

/// The column new and nothing written to it, the table without a dead row.
async fn start_anew(database: &Database, client: &Client) -> Result<()> {
    command(database, &["migrate", "down"]).await?;
    client
        .batch_execute("vacuum (full, analyze) runs_v3")
        .await?;
    command(database, &["migrate", "up"]).await?;
    client.batch_execute("vacuum (analyze) runs_v3").await?;
    client.batch_execute("checkpoint").await?;
    Ok(())
}

#[derive(Debug, Default)]
struct Measured {
    secs: f64,
    wal_mib: f64,
}

async fn measured(client: &Client, work: impl AsyncFnOnce() -> Result<()>) -> Result<Measured> {
    const WAL: &str =
        "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8 / 1048576";
    let before: f64 = client.query_one(WAL, &[]).await?.get(0);
    let start = Instant::now();
    work().await?;
    let secs = start.elapsed().as_secs_f64();
    let after: f64 = client.query_one(WAL, &[]).await?.get(0);
    Ok(Measured {
        secs,
        wal_mib: after - before,
    })
}

/// Writes heartbeats at a steady rate while `work` goes on; returns how long each took, from when
/// it was due.
async fn beside(
    database: &Database,
    first: i32,
    work: impl AsyncFnOnce() -> Result<()>,
) -> Result<Durations> {
    let mut sessions = Vec::new();
    for client in clients(database, 4).await {
        let statement = client.prepare(HEARTBEAT).await?;
        sessions.push((client, statement));
    }
    let mut durations = Durations::new();
    let cell = std::cell::RefCell::new(&mut durations);
    let start = Instant::now();
    let beats = open_loop(
        &sessions,
        HEARTBEATS,
        usize::MAX,
        async |(client, statement), index| {
            let run = first + i32::try_from(index % usize::try_from(ALIVE)?)?;
            #[expect(clippy::cast_precision_loss, reason = "a bench is short")]
            let due = start + Duration::from_secs_f64(index as f64 / HEARTBEATS);
            client
                .execute(statement, &[&FLOW, &run, &(now_ms() / 1000)])
                .await?;
            cell.borrow_mut().record(due.elapsed());
            Ok(())
        },
    );
    tokio::select! {
        done = work() => done?,
        failed = beats => { failed?; }
    }
    Ok(durations)
}
