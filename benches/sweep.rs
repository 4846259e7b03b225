//! How soon after its deadline a run without heartbeats is stored as failed, and what this costs.
//!
//! A writer sends heartbeats for many runs, one every ten seconds for each. At first no heartbeat
//! stops: this measures the cost of the sweeper while nothing expires. Then the heartbeats of some
//! runs stop, at scattered moments. Uses a database of its own, because its cutoff is short.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;
use tokio_postgres::{Client, Statement};

use crate::dataset::running_runs;
use crate::env::{BenchEnv, clients, cost, indexed, reset_costs};
use crate::latency::now_ms;
use crate::load::open_loop;
use crate::report::{Durations, Report, Target};
use crate::usage::{Meter, backends};
use testkit::daemon::Daemon;
use testkit::database::Database;

const FLOW: &str = "Watched";

/// Seconds between two heartbeats of a run, as the client sends them.
const INTERVAL_SECS: usize = 10;

/// Short, so that the benchmark is short; the sweeper scans at least once per cutoff.
const CUTOFF_SECS: u32 = 30;

/// Runs whose heartbeats stop.
const LOST: usize = 200;

/// A heartbeat with the metadata service's own condition.
pub(crate) const HEARTBEAT: &str = "\
update runs_v3
   set last_heartbeat_ts = $3::bigint
 where flow_id = $1
   and run_number = $2
   and (last_heartbeat_ts is null or last_heartbeat_ts <= $3::bigint - 10)";

/// Runs that ended long ago, so that most runs are not running.
const ENDED: &str = "\
insert into runs_v3 (flow_id, user_name, ts_epoch, tags, system_tags, last_heartbeat_ts)
select $1, 'tester', i * 1000, '[]', '[\"user:tester\"]', i
  from generate_series(1, $2::bigint) i";

/// Milliseconds from the deadline to the commit of the status.
const LAGS: &str = "\
select (extract(epoch from pg_xact_commit_timestamp(xmin)) - last_heartbeat_ts - $3::bigint)::float8 * 1000
  from runs_v3
 where flow_id = $1
   and run_number = any ($2)
   and run_status = 'failed'";

pub(crate) async fn run(env: &mut BenchEnv) -> Result<Report> {
    let running = env.settings.running;
    let mut report = Report::new(
        "sweep",
        format!(
            "{running} running runs, heartbeats every {INTERVAL_SECS} s, cutoff {CUTOFF_SECS} s, \
             {LOST} lost over {} s",
            env.settings.seconds
        ),
    );
    let database = env.empty().await?;
    let client = database.client().await;
    let first = running_runs(&client, FLOW, running.try_into()?, 0).await?;
    client.execute(ENDED, &[&FLOW, &100_000_i64]).await?;
    client.batch_execute("vacuum analyze").await?;
    let heart = Heart::of(&database, first, running).await?;
    tokio::select! {
        done = scenario(env, &mut report, &database, &client, &heart) => done?,
        failed = heart.beat() => failed?,
    }
    Ok(report)
}

async fn scenario(
    env: &BenchEnv,
    report: &mut Report,
    database: &Database,
    client: &Client,
    heart: &Heart,
) -> Result<()> {
    let daemon = indexed(database, CUTOFF_SECS, env.settings.tune.as_deref()).await?;
    idle(env, report, client, &daemon).await?;
    lose(env, report, client, &daemon, heart).await?;
    daemon.terminate().await;
    Ok(())
}

/// Measures the sweeper while nothing expires.
async fn idle(env: &BenchEnv, report: &mut Report, client: &Client, daemon: &Daemon) -> Result<()> {
    if env.statements {
        reset_costs(client).await?;
    }
    let meters = [
        Meter::start([daemon.pid()]),
        Meter::start(backends(client, Some("status-indexer")).await?),
    ];
    // Long enough for several sweeps.
    let duration = Duration::from_secs(2 * u64::from(CUTOFF_SECS));
    sleep(duration).await;
    let [of_daemon, of_sessions] = meters.map(|meter| meter.percent());
    let what = "nothing expires: CPU of the daemon";
    report.figure(what, of_daemon, "% of a core", Target::Below(2.0));
    let (what, both) = (
        "nothing expires: CPU of the daemon and its sessions",
        of_daemon + of_sessions,
    );
    report.figure(what, both, "% of a core", Target::Below(2.0));
    looks(env, report, client, "nothing expires", duration).await
}

/// Stops the heartbeats of some runs at scattered moments, waits until all of these runs must be
/// stored as failed, and measures the lags.
async fn lose(
    env: &BenchEnv,
    report: &mut Report,
    client: &Client,
    daemon: &Daemon,
    heart: &Heart,
) -> Result<()> {
    const FAILED: &str = "status_indexer_transitions_total{from=\"running\",reason=\"heartbeat_lost\",to=\"failed\"}";
    if env.statements {
        reset_costs(client).await?;
    }
    let before = daemon.metric(FAILED).await.unwrap_or(0.0);
    let spread = Duration::from_secs(env.settings.seconds.try_into()?);
    let limit = Duration::from_secs(u64::from(CUTOFF_SECS) + INTERVAL_SECS as u64 + 5);
    let lost = heart.runs.min(LOST);
    for index in 0..lost {
        heart.lost.borrow_mut().insert(index * (heart.runs / lost));
        sleep(spread / u32::try_from(lost)?).await;
    }
    sleep(limit).await;

    let mut lags = Durations::new();
    let numbers = heart.lost_numbers()?;
    for row in client
        .query(LAGS, &[&FLOW, &numbers, &i64::from(CUTOFF_SECS)])
        .await?
    {
        lags.record_ms(row.get(0));
    }
    let called = daemon.metric(FAILED).await.unwrap_or(0.0) - before;
    report.record("lag behind the deadline, p50", lags.quantile_ms(0.5), "ms");
    report.record("lag behind the deadline, p99", lags.quantile_ms(0.99), "ms");
    report.figure(
        "lag behind the deadline, max",
        lags.max_ms(),
        "ms",
        Target::Below(1000.0),
    );
    #[expect(clippy::cast_precision_loss, reason = "few runs are lost")]
    let (found, wanted) = (lags.count() as f64, lost as f64);
    report.figure(
        "lost runs stored as failed",
        found,
        "",
        Target::AtLeast(wanted),
    );
    report.figure(
        "healthy runs stored as failed",
        called - found,
        "",
        Target::Below(1.0),
    );
    looks(env, report, client, "while runs expire", spread + limit).await
}

async fn looks(
    env: &BenchEnv,
    report: &mut Report,
    client: &Client,
    when: &str,
    duration: Duration,
) -> Result<()> {
    if env.statements {
        let looks = cost(client, "runs.due").await?;
        let minutes = duration.as_secs_f64() / 60.0;
        report.record(&format!("{when}: sweeps"), looks.calls / minutes, "/min");
        report.record(
            &format!("{when}: server time of a sweep"),
            looks.total_ms / looks.calls,
            "ms",
        );
        report.record(&format!("{when}: longest sweep"), looks.max_ms, "ms");
    }
    Ok(())
}

/// Sends the heartbeats of the runs.
struct Heart {
    sessions: Vec<(Client, Statement)>,
    first: i32,
    runs: usize,
    /// The runs whose heartbeats have stopped.
    lost: RefCell<BTreeSet<usize>>,
}

impl Heart {
    async fn of(database: &Database, first: i32, runs: usize) -> Result<Self> {
        let mut sessions = Vec::new();
        for client in clients(database, 4).await {
            let statement = client.prepare(HEARTBEAT).await?;
            sessions.push((client, statement));
        }
        Ok(Self {
            sessions,
            first,
            runs,
            lost: RefCell::default(),
        })
    }

    fn lost_numbers(&self) -> Result<Vec<i32>> {
        let lost = self.lost.borrow();
        let number = |index: &usize| Ok(self.first + i32::try_from(*index)?);
        lost.iter().map(number).collect()
    }

    /// Sends heartbeats at the clients' rate; ends only with an error.
    async fn beat(&self) -> Result<()> {
        #[expect(clippy::cast_precision_loss, reason = "runs are few")]
        let rate = self.runs as f64 / INTERVAL_SECS as f64;
        let beat = async |(client, statement): &(Client, Statement), index: usize| {
            let run = index % self.runs;
            if !self.lost.borrow().contains(&run) {
                let number = self.first + i32::try_from(run)?;
                let now_secs = now_ms() / 1000;
                client
                    .execute(statement, &[&FLOW, &number, &now_secs])
                    .await?;
            }
            Ok(())
        };
        open_loop(&self.sessions, rate, usize::MAX, beat)
            .await
            .map(drop)
    }
}
