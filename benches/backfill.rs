//! Filling the column of a env that has a million runs, against the plainest statement that does it.
//!
//! Both write the same rows, those that are not `completed`, of a table that is packed anew before
//! each: `update ... from` in one statement with the definition computed set-wise, and the
//! `backfill` command. Heartbeats of healthy runs are written all the while, to see whom it keeps
//! waiting, as many without it as beside it. A machine is not the same from minute to minute: hence
//! turns, and in each the backfill is held against the mean of the statement before it and the one
//! after it.

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

/// Runs whose heartbeats are written meanwhile, and how many heartbeats a second: each run's turn
/// comes every eleven seconds, for the service takes none within ten.
const ALIVE: usize = 2_200;
const HEARTBEATS: f64 = 200.0;

/// For how long heartbeats are written before a backfill: about as many as beside it, so that their
/// p99 is as sure. Not after it, while the kernel still writes what the backfill left to it.
const ALONE: Duration = Duration::from_secs(20);

const SIZES: &str = "\
select pg_table_size('runs_v3')::float8 / 1048576, pg_indexes_size('runs_v3')::float8 / 1048576";

/// What the server has counted for a backfill's statements.
struct Costs {
    apply: Cost,
    compare: Cost,
}

/// One backfill, and what it is measured against.
struct Turn {
    /// The plain statement before it, and the one after it.
    plain: [Measured; 2],
    backfill: Measured,
    /// Heartbeats before it.
    alone: Durations,
    /// Heartbeats beside it.
    beside: Durations,
    /// MiB.
    memory_peak: f64,
    /// Where statements are counted.
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
            "{} runs and a fifth as many, {HEARTBEATS} heartbeats/s meanwhile, {} turns",
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
            "  a turn: backfill {:.1} s, {:.2} of the plain statement; heartbeats' p99 {:.2} of {:.2} ms",
            turn.backfill.secs,
            turn.time_ratio(),
            turn.p99_ratio(),
            turn.alone.quantile_ms(0.99)
        );
        turns.push(turn);
    }
    tell(&mut report, &turns);
    let sizes = client.query_one(SIZES, &[]).await?;
    report.record("table afterwards", sizes.get(0), "MiB");
    report.record("its indexes", sizes.get(1), "MiB");
    Ok(report)
}

/// The plain statement, on a table made anew.
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
    report.record("one plain statement, alone", middle(&Turn::plain_secs), "s");
    report.record(
        "backfill, beside the heartbeats",
        middle(&|t| t.backfill.secs),
        "s",
    );
    report.figure(
        "backfill / plain statement",
        middle(&time),
        "",
        Target::Below(1.3),
    );
    report.note("  from turn to turn", &each(&time));
    report.record(
        "WAL, plain statement",
        middle(&|t| t.plain[0].wal_mib),
        "MiB",
    );
    report.record("WAL, backfill", middle(&|t| t.backfill.wal_mib), "MiB");
    for (name, quantile) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
        let without = middle(&|t| t.alone.quantile_ms(quantile));
        report.record(&format!("heartbeats' {name} without"), without, "ms");
        let beside = middle(&|t| t.beside.quantile_ms(quantile));
        report.record(&format!("heartbeats' {name} meanwhile"), beside, "ms");
    }
    let p99 = Turn::p99_ratio;
    report.figure(
        "heartbeats' p99, meanwhile / without",
        middle(&p99),
        "",
        Target::Below(2.0),
    );
    report.note("  from turn to turn", &each(&p99));
    report.record(
        "heartbeats' longest meanwhile",
        most(&|t| t.beside.max_ms()),
        "ms",
    );
    report.record(
        "heartbeats' longest without",
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
            report.record(&what("one"), median(&one), "ms");
        }
        report.figure(
            "longest apply call, so locks held",
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
    #[expect(clippy::cast_precision_loss, reason = "few are wrong")]
    let wrong = most(&|t| t.wrong as f64);
    report.figure("statuses wrong", wrong, "", Target::Below(1.0));
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
    /// How many heartbeats there were so far.
    beaten: Cell<usize>,
}

impl Hearts {
    /// Writes heartbeats at a steady rate while `work` goes on; records how long each took, from
    /// when it was due.
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
