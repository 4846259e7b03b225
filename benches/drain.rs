//! How fast the daemon drains a backlog in which every event changes a status.
//!
//! The queue is filled while no daemon runs. The rate is computed from the commit timestamps of the
//! statuses that the daemon then writes. In alternation, a bare loop makes the same calls on an
//! equal backlog: this is what the server alone can do.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::dataset::running_runs;
use crate::env::{BenchEnv, LONG_CUTOFF_SECS, cost, reset_costs};
use crate::latency::now_ms;
use crate::report::{Durations, Report, Target, median};
use crate::usage::{backends, cpu};
use testkit::daemon::Launch;
use testkit::database::Database;

const FLOW: &str = "Backlog";

/// One event for each run, in random order; `$4` is the value of `attempt_ok`, which decides the
/// status.
const BACKLOG: &str = "\
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type,
                         user_name, ts_epoch, tags, system_tags)
select $1, $2::bigint + i, 'end', 1, 'attempt_ok', $4, 'attempt_ok', 'tester', $5, '[]', '[]'
  from generate_series(0, $3::bigint - 1) i
 order by hashint8(i)";

/// The statuses written after the first commit, the seconds from the first commit to the last, and
/// the runs that have the expected status.
const PACE: &str = "\
select count(*) filter (where t > first),
       extract(epoch from max(t) - min(t))::float8,
       count(*) filter (where run_status = $2)
  from (select pg_xact_commit_timestamp(xmin) as t,
               min(pg_xact_commit_timestamp(xmin)) over () as first,
               run_status
          from runs_v3
         where flow_id = $1) s";

const DRAIN: &str = "\
select claimed, changes
  from status_indexer.drain(0, $1, null)";

/// The settings of the daemon's sessions.
const LIKE_THE_DAEMON: &str = "\
set synchronous_commit = off; set search_path = pg_catalog, pg_temp; set jit = off";

pub(crate) async fn run(env: &mut BenchEnv) -> Result<Report> {
    let settings = env.settings.clone();
    let statements = env.statements;
    let mut report = Report::new(
        "drain",
        format!(
            "{} events of distinct runs, {} rounds, {} runs",
            settings.events, settings.rounds, settings.runs
        ),
    );
    let (database, daemon) = env.indexed_dataset().await?;
    daemon.terminate().await;
    let client = database.client().await;
    let first = running_runs(&client, FLOW, settings.events, 0).await?;
    let backlog = Backlog {
        client,
        first,
        count: settings.events,
    };

    let mut by_daemon = Vec::new();
    let mut by_loop = Vec::new();
    let mut longest: f64 = 0.0;
    let mut calls = Durations::new();
    let mut shares = Vec::new();
    for round in 0..settings.rounds {
        backlog
            .write(if round % 2 == 0 { "True" } else { "False" })
            .await?;
        if statements {
            reset_costs(&backlog.client).await?;
        }
        shares.push(backlog.drained_by_daemon(database).await?);
        by_daemon.push(backlog.pace().await?);
        if statements {
            longest = longest.max(cost(&backlog.client, "queue.drain").await?.max_ms);
        }
        backlog
            .write(if round % 2 == 0 { "False" } else { "True" })
            .await?;
        calls = backlog.drained_by_loop(100).await?;
        by_loop.push(backlog.pace().await?);
    }
    report.figure(
        "daemon",
        median(&by_daemon),
        "events/s",
        Target::AtLeast(8000.0),
    );
    report.record("bare calls, batches of 100", median(&by_loop), "events/s");
    for (what, quantile) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        let what = format!("  duration of one call, {what}");
        report.record(&what, calls.quantile_ms(quantile), "ms");
    }
    report.record(
        "daemon / bare calls",
        median(&by_daemon) / median(&by_loop),
        "",
    );
    if statements {
        report.figure(
            "longest drain call, during which it holds row locks",
            longest,
            "ms",
            Target::Below(50.0),
        );
    } else {
        report.note(
            "longest drain call",
            "not measured: the server has no pg_stat_statements",
        );
    }
    let [daemon_share, session_share]: [Vec<f64>; 2] =
        [0, 1].map(|index| shares.iter().map(|share| share[index]).collect());
    report.record("CPU of the daemon", median(&daemon_share), "% of a core");
    report.record("CPU of its sessions", median(&session_share), "% of a core");
    for batch in [10, 1000] {
        backlog
            .write(if batch == 10 { "True" } else { "False" })
            .await?;
        backlog.drained_by_loop(batch).await?;
        report.record(
            &format!("bare calls, batches of {batch}"),
            backlog.pace().await?,
            "events/s",
        );
    }
    Ok(report)
}

struct Backlog {
    client: Client,
    first: i32,
    count: i64,
}

impl Backlog {
    async fn write(&self, value: &str) -> Result<()> {
        self.client
            .execute(
                BACKLOG,
                &[
                    &FLOW,
                    &i64::from(self.first),
                    &self.count,
                    &value,
                    &now_ms(),
                ],
            )
            .await?;
        self.client.batch_execute("checkpoint").await?;
        Ok(())
    }

    /// Drains the queue by a new daemon; returns the CPU of the daemon and of its sessions, in
    /// percent of a core.
    async fn drained_by_daemon(&self, database: &Database) -> Result<[f64; 2]> {
        let daemon = Launch::on(database)
            .env("RUN_INACTIVE_CUTOFF_TIME", &LONG_CUTOFF_SECS.to_string())
            .args(&["run", "--metrics-listen", "127.0.0.1:0"])
            .spawn();
        let start = Instant::now();
        let waiting = "select not exists (select from status_indexer.queue)";
        while !self.client.query_one(waiting, &[]).await?.get::<_, bool>(0) {
            sleep(Duration::from_millis(20)).await;
        }
        // The daemon and its sessions are new, so all their processor time was used here.
        let sessions = backends(&self.client, Some("status-indexer")).await?;
        let percent = |used: Duration| 100.0 * used.as_secs_f64() / start.elapsed().as_secs_f64();
        let shares = [
            percent(cpu(daemon.pid()).unwrap_or_default()),
            percent(sessions.into_iter().filter_map(cpu).sum()),
        ];
        daemon.terminate().await;
        Ok(shares)
    }

    /// Drains the queue by bare calls; returns their durations.
    async fn drained_by_loop(&self, batch: i32) -> Result<Durations> {
        self.client.batch_execute(LIKE_THE_DAEMON).await?;
        let mut calls = Durations::new();
        loop {
            let start = Instant::now();
            let rows = self
                .client
                .query_typed(DRAIN, &[(&batch, Type::INT4)])
                .await?;
            if rows.first().is_none_or(|row| row.get::<_, i32>(0) == 0) {
                break;
            }
            calls.record(start.elapsed());
        }
        self.client.batch_execute("reset all").await?;
        Ok(calls)
    }

    /// Events per second from the first commit to the last; the time of the first batch is not
    /// counted.
    async fn pace(&self) -> Result<f64> {
        const NEWEST: &str = "\
select case value when 'True' then 'completed' else 'failed' end
  from metadata_v3
 where flow_id = $1
 order by id desc
 limit 1";
        let status: String = self.client.query_one(NEWEST, &[&FLOW]).await?.get(0);
        let row = self.client.query_one(PACE, &[&FLOW, &status]).await?;
        let (later, secs, right): (i64, f64, i64) = (row.get(0), row.get(1), row.get(2));
        anyhow::ensure!(
            right == self.count,
            "{} statuses differ from the expected one",
            self.count - right
        );
        #[expect(clippy::cast_precision_loss, reason = "a backlog is small")]
        let pace = later as f64 / secs;
        Ok(pace)
    }
}
