//! The time from the commit of an event to the commit of the status that follows, at a steady rate.
//!
//! Computed from the server's commit timestamps, which are read afterwards, so that no query
//! disturbs the measurement. Each event belongs to a run of its own and changes its status: two
//! thirds of the events end a run, one third retries the end step of a failed run.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use tokio_postgres::{Client, Statement};

use crate::dataset::running_runs;
use crate::env::{BenchEnv, clients, settled};
use crate::load::open_loop;
use crate::report::{Durations, Report, Target};
use crate::usage::{Meter, backends};
use testkit::daemon::Daemon;
use testkit::database::Database;

/// Events a second.
const RATES: [usize; 2] = [50, 500];

/// A metadata row as the metadata service writes it.
pub(crate) const INSERT: &str = "\
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type,
                         user_name, ts_epoch, tags, system_tags)
values ($1, $2, $3, 1, $4, $5, $4, 'tester', $6, '[\"attempt_id:0\"]', '[]')";

/// One row for each event: the lag in milliseconds, which is null or negative if the event
/// did not change the status, and whether the status is the expected one.
const LAGS: &str = "\
select extract(epoch from pg_xact_commit_timestamp(r.xmin)
                        - pg_xact_commit_timestamp(m.xmin))::float8 * 1000,
       r.run_status = case
         when m.field_name = 'attempt' then 'running'
         when m.value = 'True' then 'completed'
         else 'failed'
       end
  from metadata_v3 m
  join runs_v3 r on r.flow_id = m.flow_id and r.run_number = m.run_number
 where m.flow_id = $1
   and m.run_number between $2 and $3
   and m.user_name = 'tester'";

/// A connection of the metadata service with its statement prepared.
pub(crate) struct Service {
    pub(crate) client: Client,
    pub(crate) insert: Statement,
}

impl Service {
    pub(crate) async fn many(database: &Database, count: usize) -> Result<Vec<Self>> {
        let mut services = Vec::with_capacity(count);
        for client in clients(database, count).await {
            let insert = client.prepare(INSERT).await?;
            services.push(Self { client, insert });
        }
        Ok(services)
    }

    pub(crate) async fn write(
        &self,
        flow: &str,
        run: i32,
        step: &str,
        field: &str,
        value: &str,
    ) -> Result<()> {
        let (run, now_ms) = (i64::from(run), now_ms());
        self.client
            .execute(&self.insert, &[&flow, &run, &step, &field, &value, &now_ms])
            .await?;
        Ok(())
    }
}

/// This machine's clock, which is also the server's.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(crate) async fn run(env: &mut BenchEnv) -> Result<Report> {
    let settings = env.settings.clone();
    let mut report = Report::new(
        "latency",
        format!(
            "{:?} events/s for {} s each, {} connections, {} runs",
            RATES, settings.seconds, settings.clients, settings.runs
        ),
    );
    let (database, daemon) = env.indexed_dataset().await?;
    let services = Service::many(database, settings.clients).await?;
    for rate in RATES {
        let count = rate * settings.seconds;
        one_rate(&mut report, database, &daemon, &services, rate, count).await?;
    }
    daemon.terminate().await;
    Ok(report)
}

async fn one_rate(
    report: &mut Report,
    database: &Database,
    daemon: &Daemon,
    services: &[Service],
    rate: usize,
    count: usize,
) -> Result<()> {
    let flow = format!("Latency{rate}");
    let client = database.client().await;
    let first = prepare(&client, &flow, count).await?;
    settled(&client).await?;

    let before = buckets(daemon).await;
    let notified = daemon.metric("status_indexer_notifications_total").await;
    let ours = backends(&client, Some("status-indexer")).await?;
    let all = backends(&client, None).await?;
    let meters = [
        Meter::start([daemon.pid()]),
        Meter::start(ours),
        Meter::start(all),
    ];
    #[expect(clippy::cast_precision_loss, reason = "a rate is small")]
    let reached = open_loop(services, rate as f64, count, async |service, index| {
        let run = first + i32::try_from(index)?;
        match index % 3 {
            0 => service.write(&flow, run, "end", "attempt_ok", "True").await,
            1 => {
                service
                    .write(&flow, run, "end", "attempt_ok", "False")
                    .await
            }
            _ => service.write(&flow, run, "end", "attempt", "1").await,
        }
    })
    .await?;
    let [of_daemon, of_ours, of_all] = meters.map(|meter| meter.percent());
    settled(&client).await?;
    let after = buckets(daemon).await;
    let notifications = daemon.metric("status_indexer_notifications_total").await;

    let (lags, wrong, unclear) = lags(&client, &flow, first, count).await?;
    let at = |what: &str| format!("{rate}/s: {what}");
    report.figure(
        &at("lag p50"),
        lags.quantile_ms(0.5),
        "ms",
        Target::Below(5.0),
    );
    report.figure(
        &at("lag p99"),
        lags.quantile_ms(0.99),
        "ms",
        Target::Below(15.0),
    );
    report.record(&at("lag max"), lags.max_ms(), "ms");
    report.record(
        &at("p50 of the daemon's histogram"),
        quantile_ms(&before, &after, 0.5),
        "ms",
    );
    report.record(
        &at("p99 of the daemon's histogram"),
        quantile_ms(&before, &after, 0.99),
        "ms",
    );
    report.record(&at("rate reached"), reached, "/s");
    report.figure(&at("statuses that differ"), wrong, "", Target::Below(1.0));
    report.record(&at("events without a measured lag"), unclear, "");
    report.record(
        &at("notifications"),
        notifications.unwrap_or(0.0) - notified.unwrap_or(0.0),
        "",
    );
    report.record(&at("CPU of the daemon"), of_daemon, "% of a core");
    report.record(&at("CPU of the daemon's sessions"), of_ours, "% of a core");
    report.record(&at("CPU of all sessions"), of_all, "% of a core");
    Ok(())
}

/// Adds a run for each event; every third has failed already. Returns the first run's number.
async fn prepare(client: &Client, flow: &str, count: usize) -> Result<i32> {
    const FAILED: &str = "\
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type,
                         user_name, ts_epoch, tags, system_tags)
select $1, $2::bigint + i, 'end', 1, 'attempt_ok', 'False', 'attempt_ok', 'before', $4, '[]', '[]'
  from generate_series(2, $3::bigint - 1, 3) i";
    let count = i64::try_from(count)?;
    let first = running_runs(client, flow, count, 0).await?;
    let earlier = now_ms() - 1000;
    client
        .execute(FAILED, &[&flow, &i64::from(first), &count, &earlier])
        .await?;
    client.batch_execute("checkpoint").await?;
    Ok(first)
}

/// The lags, the number of statuses that differ, and the number of events without a measured lag.
async fn lags(
    client: &Client,
    flow: &str,
    first: i32,
    count: usize,
) -> Result<(Durations, f64, f64)> {
    let (from, to) = (i64::from(first), i64::from(first) + i64::try_from(count)?);
    let mut lags = Durations::new();
    let (mut wrong, mut unclear) = (0.0, 0.0);
    for row in client.query(LAGS, &[&flow, &from, &to]).await? {
        match row.get::<_, Option<f64>>(0) {
            Some(ms) if ms >= 0.0 => lags.record_ms(ms),
            _ => unclear += 1.0,
        }
        if !row.get::<_, bool>(1) {
            wrong += 1.0;
        }
    }
    Ok((lags, wrong, unclear))
}

/// The daemon's histogram of lags: the number of events at or below each bound.
async fn buckets(daemon: &Daemon) -> Vec<(f64, f64)> {
    let text = daemon.get("/metrics").await.map(|(_, body)| body);
    let found: HashMap<String, f64> = text
        .unwrap_or_default()
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix("status_indexer_event_lag_seconds_bucket{le=\"")?;
            let (bound, count) = rest.split_once("\"} ")?;
            Some((bound.to_owned(), count.parse().ok()?))
        })
        .collect();
    let mut buckets: Vec<(f64, f64)> = found
        .into_iter()
        .map(|(bound, count)| (bound.parse().unwrap_or(f64::INFINITY), count))
        .collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    buckets
}

/// The quantile as Prometheus estimates it: linear within a bucket.
fn quantile_ms(before: &[(f64, f64)], after: &[(f64, f64)], quantile: f64) -> f64 {
    let counts: Vec<(f64, f64)> = before
        .iter()
        .zip(after)
        .map(|(old, new)| (new.0, new.1 - old.1))
        .collect();
    let wanted = counts.last().map_or(0.0, |last| last.1) * quantile;
    let mut below = (0.0, 0.0);
    for (bound, count) in counts {
        if count >= wanted && count > 0.0 {
            if bound.is_infinite() {
                return below.0 * 1e3;
            }
            let share = (wanted - below.1) / (count - below.1);
            return (below.0 + (bound - below.0) * share) * 1e3;
        }
        below = (bound, count);
    }
    f64::NAN
}
