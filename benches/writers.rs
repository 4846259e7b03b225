//! What the triggers cost writers: throughput with triggers and without, in alternating intervals.
//!
//! For an interval without triggers they are dropped and then created again, so that not even a
//! disabled trigger has an effect; the daemon runs throughout. Each interval with triggers is
//! paired with a neighbouring one without, and the order within the pair alternates. The figure is
//! the median of the pairs' ratios. Statements are sent as the metadata service sends them, as text
//! that contains the values; the cost with prepared statements is reported too. The heartbeats'
//! share of HOT updates is measured in two other databases, without the indexer and with it.

use std::cell::Cell;
use std::time::Duration;

use anyhow::Result;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use crate::dataset::running_runs;
use crate::env::{BenchEnv, LONG_CUTOFF_SECS, clients, indexed, settled};
use crate::latency::{INSERT, now_ms};
use crate::load::closed_loop;
use crate::report::{Report, Target, median};
use crate::sweep::HEARTBEAT;
use crate::usage::{Meter, backends};
use testkit::database::Database;

const FLOW: &str = "Written";

/// Runs that are written to.
const RUNS: i64 = 10_000;

/// The age of the first heartbeats. Each heartbeat advances by ten seconds, and none may be ahead
/// of the clock or stale.
const AGE_SECS: i64 = 70_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Metadata,
    Heartbeats,
    PreparedMetadata,
    PreparedHeartbeats,
    Mix,
    EndStep,
}

impl Work {
    const ALL: [Self; 6] = [
        Self::Metadata,
        Self::Heartbeats,
        Self::PreparedMetadata,
        Self::PreparedHeartbeats,
        Self::Mix,
        Self::EndStep,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Metadata => "metadata that changes no status",
            Self::Heartbeats => "heartbeats of healthy runs",
            Self::PreparedMetadata => "the same metadata, prepared",
            Self::PreparedHeartbeats => "the same heartbeats, prepared",
            Self::Mix => "metadata, every tenth row of the end step",
            Self::EndStep => "only attempt_ok of the end step",
        }
    }

    fn target(self) -> Target {
        match self {
            Self::Metadata | Self::Heartbeats => Target::AtLeast(0.95),
            _ => Target::None,
        }
    }

    fn is_heartbeat(self) -> bool {
        matches!(self, Self::Heartbeats | Self::PreparedHeartbeats)
    }

    fn is_prepared(self) -> bool {
        matches!(self, Self::PreparedMetadata | Self::PreparedHeartbeats)
    }
}

/// The result of one interval: calls per second, and the server's processor time per call in
/// microseconds.
#[derive(Debug, Clone, Copy)]
struct Turn {
    per_second: f64,
    cost_us: f64,
}

pub(crate) async fn run(env: &mut BenchEnv) -> Result<Report> {
    let settings = env.settings.clone();
    let mut report = Report::new(
        "writers",
        format!(
            "{} clients, {} intervals of {} s with triggers and as many without, {} runs",
            settings.clients, settings.turns, settings.turn_seconds, settings.runs
        ),
    );
    let (database, daemon) = env.indexed_dataset().await?;
    let client = database.client().await;
    let first = running_runs(&client, FLOW, RUNS, AGE_SECS).await?;
    let writers = Writers::of(database, first, settings.clients).await?;
    let duration = Duration::from_secs(settings.turn_seconds);
    for work in Work::ALL {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        // The first calls plan their statements and warm the caches.
        writers.turn(&client, work, Duration::from_secs(1)).await?;
        for turn in 0..settings.turns {
            let with_first = turn % 2 == 0;
            if with_first {
                with.push(writers.turn(&client, work, duration).await?);
            }
            settled(&client).await?;
            let triggers = remove_triggers(&client).await?;
            without.push(writers.turn(&client, work, duration).await?);
            client.batch_execute(&triggers).await?;
            if !with_first {
                with.push(writers.turn(&client, work, duration).await?);
            }
        }
        settled(&client).await?;
        compare(&mut report, work, &with, &without);
    }
    daemon.terminate().await;
    drop(writers);
    hot(env, &mut report).await?;
    Ok(report)
}

fn compare(report: &mut Report, work: Work, with: &[Turn], without: &[Turn]) {
    let name = work.name();
    let all = |turns: &[Turn], of: fn(&Turn) -> f64| -> Vec<f64> { turns.iter().map(of).collect() };
    let ratios = |of: fn(&Turn) -> f64| -> Vec<f64> {
        let pairs = with.iter().zip(without);
        pairs
            .map(|(with, without)| of(with) / of(without))
            .collect()
    };
    let pace = ratios(|turn| turn.per_second);
    report.figure(
        &format!("{name}: with / without"),
        median(&pace),
        "",
        work.target(),
    );
    let spread = format!(
        "{:.3} to {:.3}",
        pace.iter().copied().fold(f64::INFINITY, f64::min),
        pace.iter().copied().fold(0.0, f64::max)
    );
    report.note("  range", &spread);
    report.record(
        "  with triggers",
        median(&all(with, |turn| turn.per_second)),
        "/s",
    );
    report.record(
        "  without triggers",
        median(&all(without, |turn| turn.per_second)),
        "/s",
    );
    report.record(
        "  server CPU per call, with / without",
        median(&ratios(|turn| turn.cost_us)),
        "",
    );
    report.record(
        "  server CPU per call, without",
        median(&all(without, |turn| turn.cost_us)),
        "us",
    );
}

/// Drops all triggers of the indexer; returns the statements that create them again.
async fn remove_triggers(client: &Client) -> Result<String> {
    const TRIGGERS: &str = "\
select string_agg(format('drop trigger %I on %s', tgname, tgrelid::regclass), ';'),
       string_agg(pg_get_triggerdef(oid), ';')
  from pg_trigger
 where tgname like 'status\\_indexer\\_%'";
    let row = client.query_one(TRIGGERS, &[]).await?;
    client.batch_execute(row.get(0)).await?;
    Ok(row.get(1))
}

struct Writers {
    sessions: Vec<Session>,
    first: i32,
    /// The number of calls in all intervals so far.
    done: Cell<usize>,
    /// The heartbeat of all runs at the start, in seconds.
    heartbeat: i64,
}

struct Session {
    client: Client,
    insert: Statement,
    heartbeat: Statement,
}

impl Writers {
    async fn of(database: &Database, first: i32, count: usize) -> Result<Self> {
        let mut sessions = Vec::new();
        for client in clients(database, count).await {
            sessions.push(Session {
                insert: client.prepare(INSERT).await?,
                heartbeat: client.prepare(HEARTBEAT).await?,
                client,
            });
        }
        Ok(Self {
            sessions,
            first,
            done: Cell::new(0),
            heartbeat: now_ms() / 1000 - AGE_SECS,
        })
    }

    async fn turn(&self, client: &Client, work: Work, duration: Duration) -> Result<Turn> {
        client.batch_execute("checkpoint").await?;
        let ours = backends(client, Some("status-indexer")).await?;
        let all = backends(client, None).await?;
        let meter = Meter::start(all.difference(&ours).copied());
        let from = self.done.get();
        let most = Cell::new(0);
        let per_second = closed_loop(&self.sessions, duration, async |session, index| {
            most.set(most.get().max(index + 1));
            self.call(session, work, from + index).await
        })
        .await?;
        self.done.set(from + most.get());
        #[expect(clippy::cast_precision_loss, reason = "calls are far below 2^52")]
        let cost_us = meter.used().as_secs_f64() * 1e6 / most.get() as f64;
        Ok(Turn {
            per_second,
            cost_us,
        })
    }

    async fn call(&self, session: &Session, work: Work, index: usize) -> Result<()> {
        let runs = usize::try_from(RUNS)?;
        let run = self.first + i32::try_from(index % runs)?;
        let client = &session.client;
        if work.is_heartbeat() {
            let round = i64::try_from(index / runs)?;
            let heartbeat = self.heartbeat + 10 * (round + 1);
            if work.is_prepared() {
                let values: [&(dyn ToSql + Sync); 3] = [&FLOW, &run, &heartbeat];
                client.execute(&session.heartbeat, &values).await?;
            } else {
                client
                    .batch_execute(&heartbeat_as_text(run, heartbeat))
                    .await?;
            }
            return Ok(());
        }
        let ends = match work {
            Work::EndStep => true,
            Work::Mix => index.is_multiple_of(10),
            _ => false,
        };
        let (step, field, value) = if ends {
            // Each round over the runs changes every status.
            let ok = (index / runs).is_multiple_of(2);
            ("end", "attempt_ok", if ok { "True" } else { "False" })
        } else {
            ("train", "ds-root", "s3://bucket/metaflow/data/Written")
        };
        if work.is_prepared() {
            let run = i64::from(run);
            let values: [&(dyn ToSql + Sync); 6] = [&FLOW, &run, &step, &field, &value, &now_ms()];
            client.execute(&session.insert, &values).await?;
        } else {
            client
                .batch_execute(&insert_as_text(run, step, field, value))
                .await?;
        }
        Ok(())
    }
}

/// [`HEARTBEAT`] as the metadata service's driver sends it.
fn heartbeat_as_text(run: i32, heartbeat: i64) -> String {
    let before = heartbeat - 10;
    format!(
        "\
update runs_v3 set last_heartbeat_ts = {heartbeat}
 where flow_id = '{FLOW}' and run_number = '{run}'
   and (last_heartbeat_ts is null or last_heartbeat_ts <= {before})"
    )
}

/// [`INSERT`] as the metadata service's driver sends it.
fn insert_as_text(run: i32, step: &str, field: &str, value: &str) -> String {
    let now_ms = now_ms();
    format!(
        "\
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type,
                         user_name, ts_epoch, tags, system_tags)
values ('{FLOW}', '{run}', '{step}', '1', '{field}', '{value}', '{field}', 'tester', {now_ms},
        '[\"attempt_id:0\"]', '[]')"
    )
}

/// Compares the share of HOT updates among heartbeats, without the indexer and with it. Between two
/// heartbeats of a run, every other run has one.
async fn hot(env: &BenchEnv, report: &mut Report) -> Result<()> {
    let before = hot_share(env, false).await?;
    let after = hot_share(env, true).await?;
    report.record("HOT heartbeats, without the indexer", before * 100.0, "%");
    report.record("HOT heartbeats, with the indexer", after * 100.0, "%");
    report.figure(
        "HOT heartbeats, with / without the indexer",
        after / before,
        "",
        Target::AtLeast(0.99),
    );
    Ok(())
}

async fn hot_share(env: &BenchEnv, with: bool) -> Result<f64> {
    const COUNTS: &str = "\
select n_tup_upd::float8, n_tup_hot_upd::float8
  from pg_stat_user_tables
 where relname = 'runs_v3'";
    const BEATS: usize = 10;
    let database = env.empty().await?;
    let client = database.client().await;
    let first = running_runs(&client, FLOW, RUNS, AGE_SECS).await?;
    client.batch_execute("vacuum analyze").await?;
    let daemon = if with {
        Some(indexed(&database, LONG_CUTOFF_SECS, env.settings.tune.as_deref()).await?)
    } else {
        None
    };
    let counts = async || -> Result<(f64, f64)> {
        // Sessions report their statistics with a delay.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let row = client.query_one(COUNTS, &[]).await?;
        Ok((row.get(0), row.get(1)))
    };
    let (updates, hot_updates) = counts().await?;
    {
        let writers = Writers::of(&database, first, env.settings.clients).await?;
        let count = BEATS * usize::try_from(RUNS)?;
        crate::load::open_loop(&writers.sessions, 1e6, count, async |session, index| {
            writers.call(session, Work::PreparedHeartbeats, index).await
        })
        .await?;
    }
    let (updates_after, hot_after) = counts().await?;
    if let Some(daemon) = daemon {
        daemon.terminate().await;
    }
    Ok((hot_after - hot_updates) / (updates_after - updates))
}
