//! The `backfill` command on a million runs, compared with one plain statement that does the same.
//!
//! Both write the same rows, those that are not `completed`. The plain statement is an `update ...
//! from` that computes the definition for all runs at once. The table is rewritten by `vacuum full`
//! before each. Heartbeats of healthy runs are written before the backfill and while it runs, at
//! the same rate, to measure how long the backfill delays them. A machine's speed changes from
//! minute to minute, so the two alternate in rounds: each backfill is compared with the mean of the
//! plain statement before it and the one after it.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::baseline;
use crate::dataset::running_runs;
use crate::env::{BenchEnv, Cost, LONG_CUTOFF_SECS, clients, command, cost, reset_costs};
use crate::latency::now_ms;
use crate::load::open_loop;
use crate::report::{Durations, Report, Target, median};
use crate::sweep::HEARTBEAT;
use testkit::database::Database;

const FLOW: &str = "Alive";

/// Runs whose heartbeats are written, and the heartbeats per second. Each run has one every eleven
/// seconds, because the metadata service ignores a heartbeat within ten seconds of the last one.
const ALIVE: usize = 2_200;
const HEARTBEATS: f64 = 200.0;

/// How long heartbeats are written before a backfill: about as long as a backfill takes, so that
/// both p99 are equally precise. Not after it, because the kernel then still writes the backfill's
/// pages to disk.
const ALONE: Duration = Duration::from_secs(20);

const SIZES: &str = "\
select pg_table_size('runs_v3')::float8 / 1048576, pg_indexes_size('runs_v3')::float8 / 1048576";

/// The server's counters of a backfill's statements.
struct Costs {
    apply: Cost,
    compare: Cost,
}

/// One backfill, and what it is compared with.
struct Turn {
    /// The plain statement before it, and the one after it.
    plain: [Measured; 2],
    backfill: Measured,
    /// Heartbeats before the backfill.
    alone: Durations,
    /// Heartbeats while the backfill runs.
    beside: Durations,
    /// Peak memory of the command, MiB.
    memory_peak: f64,
    /// None if the server has no `pg_stat_statements`.
    costs: Option<Costs>,
    wrong: i64,
}

impl Turn {
    fn p99_ratio(&self) -> f64 {
        self.beside.quantile_ms(0.99) / self.alone.quantile_ms(0.99)
    }

    fn plain_secs(&self) -> f64 {
        let [before, after] = &self.plain;
        f64::midpoint(before.secs, after.secs)
    }

    fn time_ratio(&self) -> f64 {
        self.backfill.secs / self.plain_secs()
    }
}

pub(crate) async fn run(env: &mut BenchEnv) -> Result<Report> {
    let settings = env.settings.clone();
    let statements = env.statements;
    let mut report = Report::new(
        "backfill",
        format!(
            "{} runs in one flow and a fifth as many in others, {HEARTBEATS} heartbeats/s, {} rounds",
            settings.runs, settings.rounds
        ),
    );
    let database = env.dataset().await?;
    let client = database.client().await;
    let hearts = Hearts {
        first: running_runs(&client, FLOW, i64::try_from(ALIVE)?, 0).await?,
        beaten: Cell::new(0),
    };
    let mut turns = Vec::new();
    let mut before = plain(database, &client).await?;
    for _ in 0..settings.rounds {
        let turn = turn(database, &client, &hearts, statements, before).await?;
        before = turn.plain[1];
        eprintln!(
            "  round: backfill {:.1} s, {:.2} times the plain statement; heartbeat p99 {:.2} times {:.2} ms",
            turn.backfill.secs,
            turn.time_ratio(),
            turn.p99_ratio(),
            turn.alone.quantile_ms(0.99)
        );
        turns.push(turn);
    }
    tell(&mut report, &turns);
    let sizes = client.query_one(SIZES, &[]).await?;
    report.record("table size afterwards", sizes.get(0), "MiB");
    report.record("index size afterwards", sizes.get(1), "MiB");
    Ok(report)
}

/// Measures the plain statement on a freshly rewritten table.
async fn plain(database: &Database, client: &Client) -> Result<Measured> {
    start_anew(database, client).await?;
    measured(client, async || {
        client.batch_execute("set jit = off").await?;
        client
            .execute(baseline::SPARSE_UPDATE, &[&i64::from(LONG_CUTOFF_SECS)])
            .await?;
        Ok(())
    })
    .await
}

async fn turn(
    database: &Database,
    client: &Client,
    hearts: &Hearts,
    statements: bool,
    before: Measured,
) -> Result<Turn> {
    start_anew(database, client).await?;
    if statements {
        reset_costs(client).await?;
    }
    let mut alone = Durations::new();
    let mut beside = Durations::new();
    hearts
        .beat(database, &mut alone, async || {
            sleep(ALONE).await;
            Ok(())
        })
        .await?;
    let mut memory_peak = 0.0;
    let mut backfill = Measured::default();
    hearts
        .beat(database, &mut beside, async || {
            backfill = measured(client, async || {
                memory_peak = command(database, &["backfill"]).await?;
                Ok(())
            })
            .await?;
            Ok(())
        })
        .await?;

    let costs = if statements {
        Some(Costs {
            apply: cost(client, "apply.keys").await?,
            compare: cost(client, "runs.compare").await?,
        })
    } else {
        None
    };
    let row = client
        .query_one(baseline::COUNT_WRONG, &[&i64::from(LONG_CUTOFF_SECS)])
        .await?;
    Ok(Turn {
        plain: [before, plain(database, client).await?],
        backfill,
        alone,
        beside,
        memory_peak,
        costs,
        wrong: row.get(0),
    })
}

fn tell(report: &mut Report, turns: &[Turn]) {
    let middle = |of: &dyn Fn(&Turn) -> f64| median(&turns.iter().map(of).collect::<Vec<_>>());
    let most = |of: &dyn Fn(&Turn) -> f64| turns.iter().map(of).fold(0.0, f64::max);
    let each = |of: &dyn Fn(&Turn) -> f64| {
        let each: Vec<_> = turns
            .iter()
            .map(|turn| format!("{:.2}", of(turn)))
            .collect();
        each.join(", ")
    };
    let time = Turn::time_ratio;
    report.record(
        "plain statement, without heartbeats",
        middle(&Turn::plain_secs),
        "s",
    );
    report.record(
        "backfill, with heartbeats",
        middle(&|t| t.backfill.secs),
        "s",
    );
    report.figure(
        "backfill / plain statement",
        middle(&time),
        "",
        Target::Below(1.3),
    );
    report.note("  by round", &each(&time));
    report.record(
        "WAL, plain statement",
        middle(&|t| t.plain[0].wal_mib),
        "MiB",
    );
    report.record("WAL, backfill", middle(&|t| t.backfill.wal_mib), "MiB");
    for (name, quantile) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
        let without = middle(&|t| t.alone.quantile_ms(quantile));
        report.record(
            &format!("heartbeats' {name} without backfill"),
            without,
            "ms",
        );
        let beside = middle(&|t| t.beside.quantile_ms(quantile));
        report.record(&format!("heartbeats' {name} with backfill"), beside, "ms");
    }
    let p99 = Turn::p99_ratio;
    report.figure(
        "heartbeats' p99, with / without backfill",
        middle(&p99),
        "",
        Target::Below(2.0),
    );
    report.note("  by round", &each(&p99));
    report.record(
        "heartbeats' longest with backfill",
        most(&|t| t.beside.max_ms()),
        "ms",
    );
    report.record(
        "heartbeats' longest without backfill",
        most(&|t| t.alone.max_ms()),
        "ms",
    );
    let costs: Vec<&Costs> = turns.iter().filter_map(|t| t.costs.as_ref()).collect();
    if !costs.is_empty() {
        let apply: Vec<_> = costs.iter().map(|costs| costs.apply).collect();
        let compare: Vec<_> = costs.iter().map(|costs| costs.compare).collect();
        for (name, costs) in [("apply", &apply), ("compare", &compare)] {
            let what = |part: &str| format!("server time of {name}, {part}");
            let all: Vec<_> = costs.iter().map(|c| c.total_ms / 1000.0).collect();
            report.record(&what("all calls"), median(&all), "s");
            let one: Vec<_> = costs.iter().map(|c| c.total_ms / c.calls).collect();
            report.record(&what("one call"), median(&one), "ms");
        }
        report.figure(
            "longest apply call, during which it holds row locks",
            apply.iter().map(|cost| cost.max_ms).fold(0.0, f64::max),
            "ms",
            Target::Below(100.0),
        );
    }
    report.figure(
        "memory of the command, peak",
        most(&|t| t.memory_peak),
        "MiB",
        Target::Below(64.0),
    );
    #[expect(clippy::cast_precision_loss, reason = "few statuses differ")]
    let wrong = most(&|t| t.wrong as f64);
    report.figure("statuses that differ", wrong, "", Target::Below(1.0));
}

/// Recreates the column, without any status written, and removes the table's dead rows.
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

#[derive(Debug, Default, Clone, Copy)]
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

/// The runs whose heartbeats are written.
struct Hearts {
    first: i32,
    /// The number of heartbeats so far.
    beaten: Cell<usize>,
}

impl Hearts {
    /// Writes heartbeats at a steady rate until `work` ends; records how long each took, from the
    /// time at which it was due.
    async fn beat(
        &self,
        database: &Database,
        durations: &mut Durations,
        work: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut sessions = Vec::new();
        for client in clients(database, 4).await {
            let statement = client.prepare(HEARTBEAT).await?;
            sessions.push((client, statement));
        }
        let durations = RefCell::new(durations);
        let start = Instant::now();
        let beats = open_loop(
            &sessions,
            HEARTBEATS,
            usize::MAX,
            async |(client, statement), index| {
                let turn = self.beaten.replace(self.beaten.get() + 1);
                let run = self.first + i32::try_from(turn % ALIVE)?;
                #[expect(clippy::cast_precision_loss, reason = "a bench is short")]
                let due = start + Duration::from_secs_f64(index as f64 / HEARTBEATS);
                client
                    .execute(statement, &[&FLOW, &run, &(now_ms() / 1000)])
                    .await?;
                durations.borrow_mut().record(due.elapsed());
                Ok(())
            },
        );
        tokio::select! {
            done = work() => done,
            failed = beats => failed.map(drop),
        }
    }
}
