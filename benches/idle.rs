//! The memory, processor time and queries of a daemon that has nothing to do.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::sleep;
use tokio_postgres::Client;

use crate::dataset::running_runs;
use crate::env::{BenchEnv, indexed, reset_costs};
use crate::report::{Report, Target};
use crate::usage::{Meter, backends, memory_mib};

const DURATION: Duration = Duration::from_secs(60);

const BY_STATEMENT: &str = "\
select s.calls::float8,
       coalesce(substring(s.query from '-- ([a-z_.]+)'), left(s.query, 40))
  from pg_stat_statements s
  join pg_database d on d.oid = s.dbid and d.datname = current_database()
 where s.query not like '%pg_stat_%'
 order by s.calls desc";

pub(crate) async fn run(env: &mut BenchEnv) -> Result<Report> {
    let mut report = Report::new("idle", format!("{} s without an event", DURATION.as_secs()));
    let database = env.empty().await?;
    let client = database.client().await;
    running_runs(&client, "Idle", 1000, 0).await?;
    let daemon = indexed(&database, 360, env.settings.tune.as_deref()).await?;
    // By then the daemon has finished starting.
    sleep(Duration::from_secs(5)).await;
    let meters = [
        Meter::start([daemon.pid()]),
        Meter::start(backends(&client, Some("status-indexer")).await?),
    ];
    if env.statements {
        reset_costs(&client).await?;
    }
    sleep(DURATION).await;
    let [of_daemon, of_sessions] = meters.map(|meter| meter.percent());
    queries(env, &mut report, &client).await?;
    let resident =
        memory_mib(daemon.pid(), "VmRSS").context("memory can be measured only on Linux")?;
    report.figure("resident memory", resident, "MiB", Target::Below(20.0));
    let peak = memory_mib(daemon.pid(), "VmHWM").unwrap_or(resident);
    report.record("resident memory, peak", peak, "MiB");
    report.record("CPU of the daemon", of_daemon, "% of a core");
    report.record("CPU of its sessions", of_sessions, "% of a core");
    daemon.terminate().await;
    Ok(report)
}

async fn queries(env: &BenchEnv, report: &mut Report, client: &Client) -> Result<()> {
    if !env.statements {
        report.note(
            "queries",
            "not measured: the server has no pg_stat_statements",
        );
        return Ok(());
    }
    let rows = client.query(BY_STATEMENT, &[]).await?;
    let calls: Vec<(f64, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let all: f64 = calls.iter().map(|(calls, _)| calls).sum();
    let secs = DURATION.as_secs_f64();
    report.figure("queries", all / secs, "/s", Target::Below(2.0));
    for (count, name) in calls {
        report.record(&format!("  {name}"), count / secs, "/s");
    }
    Ok(())
}
