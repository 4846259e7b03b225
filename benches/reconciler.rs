//! What continuous reconciliation costs the database, at its default rate.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::sleep;

use crate::env::{BenchEnv, cost, reset_costs};
use crate::report::{Report, Target};
use crate::usage::{Meter, backends};

const DURATION: Duration = Duration::from_secs(60);

pub(crate) async fn run(env: &mut BenchEnv) -> Result<Report> {
    let mut report = Report::new(
        "reconciler",
        format!(
            "{} s of reconciliation over {} runs",
            DURATION.as_secs(),
            env.settings.runs
        ),
    );
    ensure!(
        env.statements,
        "the server has no pg_stat_statements, which reports the cost"
    );
    let (database, daemon) = env.indexed_dataset().await?;
    let client = database.client().await;
    // The backfill has just ended, and the first reconciliation pass has begun.
    sleep(Duration::from_secs(2)).await;
    let sessions = Meter::start(backends(&client, Some("status-indexer")).await?);
    let process = Meter::start([daemon.pid()]);
    let compared = daemon.metric("status_indexer_reconciled_total").await;
    reset_costs(&client).await?;
    sleep(DURATION).await;
    let of_compare = cost(&client, "runs.compare").await?;
    let of_advance = cost(&client, "state.advance").await?;
    let (of_sessions, of_daemon) = (sessions.percent(), process.percent());
    let compared = daemon
        .metric("status_indexer_reconciled_total")
        .await
        .unwrap_or(0.0)
        - compared.unwrap_or(0.0);
    let secs = DURATION.as_secs_f64();
    let share = (of_compare.total_ms + of_advance.total_ms) / 10.0 / secs;
    report.figure(
        "statements of the scan",
        share,
        "% of a core",
        Target::Below(2.0),
    );
    report.record("all sessions of the daemon", of_sessions, "% of a core");
    report.record("daemon", of_daemon, "% of a core");
    report.record("runs compared", compared / secs, "/s");
    report.record(
        "one comparison of a batch, mean",
        of_compare.total_ms / of_compare.calls,
        "ms",
    );
    report.record(
        "one comparison of a batch, longest",
        of_compare.max_ms,
        "ms",
    );
    daemon.terminate().await;
    Ok(report)
}
