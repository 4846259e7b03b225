//! Readers that compare what they see with the definition, while writers write and daemons die.
//!
//! Owns the writers, who write what a metadata service may write in any order (but no heartbeat that
//! moves back, which triggers cannot see); two daemons, which are killed and frozen; and the readers.
//! Promises that a reader compares within one snapshot: the view `status_indexer.runs` with the
//! definition's own functions, each run once and no run left out. Called by the tests of exact reads
//! and by `make soak`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error};

use crate::daemon::{Daemon, Launch};
use crate::database::Database;
use crate::seed::Seed;
use crate::wait::within;

/// The cutoff of the daemons, seconds: deadlines pass all the time, and yet readers need not look at
/// them most of the time.
pub const CUTOFF_SECS: i64 = 20;

/// Sessions that write.
const WRITERS: u64 = 4;

/// Sessions that compare all runs in one statement.
const WHOLE_READERS: u64 = 2;

/// Sessions that compare pages and single runs, in transactions with one snapshot.
const PAGE_READERS: u64 = 2;

/// What was compared.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Statuses that were compared with the definition.
    pub comparisons: u64,
    /// Pages of one or several statuses among them.
    pub pages: u64,
    /// Snapshots whose pages were not compared, because a deadline passed meanwhile.
    pub moving: u64,
    /// Statements of the writers.
    pub writes: u64,
    /// Daemons that were killed or frozen.
    pub faults: u64,
    /// What differed, the first few.
    pub differences: Vec<String>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    comparisons: AtomicU64,
    pages: AtomicU64,
    moving: AtomicU64,
    writes: AtomicU64,
    faults: AtomicU64,
    differences: Mutex<Vec<String>>,
}

impl Shared {
    fn ended(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    async fn report_difference(&self, text: String) {
        let mut differences = self.differences.lock().await;
        if differences.len() < 5 {
            differences.push(text);
        }
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Runs for this long, or until something differs. The database has the indexer's objects; the cutoff
/// is [`CUTOFF_SECS`].
///
/// # Panics
/// If a statement is refused, or a daemon does not become ready.
pub async fn run(database: &Database, seed: &Seed, length: Duration) -> Report {
    let shared = Arc::new(Shared::default());
    database.writer().await.insert_flow("F").await;
    let mut daemons = vec![
        launch(database).start().await,
        launch(database).start().await,
    ];
    let mut tasks: Vec<JoinHandle<()>> = Vec::new();
    for number in 0..WRITERS {
        let (client, random) = (database.client().await, seed.generator(1000 + number));
        tasks.push(tokio::spawn(write(client, random, Arc::clone(&shared))));
    }
    for _ in 0..WHOLE_READERS {
        let client = database.client().await;
        tasks.push(tokio::spawn(read_whole(client, Arc::clone(&shared))));
    }
    for number in 0..PAGE_READERS {
        let (client, random) = (database.client().await, seed.generator(2000 + number));
        tasks.push(tokio::spawn(read_pages(
            client,
            random,
            Arc::clone(&shared),
        )));
    }
    disturb(
        database,
        &mut daemons,
        seed.generator(3000),
        length,
        &shared,
    )
    .await;
    shared.stop.store(true, Ordering::Relaxed);
    for task in tasks {
        within(Duration::from_secs(60), "a session ends", task)
            .await
            .expect("no session panics");
    }
    let differences = shared.differences.lock().await.clone();
    Report {
        comparisons: shared.comparisons.load(Ordering::Relaxed),
        pages: shared.pages.load(Ordering::Relaxed),
        moving: shared.moving.load(Ordering::Relaxed),
        writes: shared.writes.load(Ordering::Relaxed),
        faults: shared.faults.load(Ordering::Relaxed),
        differences,
    }
}

fn launch(database: &Database) -> Launch {
    Launch::on(database).env("RUN_INACTIVE_CUTOFF_TIME", &CUTOFF_SECS.to_string())
}

/// Kills and freezes daemons until the time is over.
async fn disturb(
    database: &Database,
    daemons: &mut [Daemon],
    mut random: StdRng,
    length: Duration,
    shared: &Shared,
) {
    let start = Instant::now();
    while start.elapsed() < length && !shared.ended() {
        sleep(Duration::from_millis(random.random_range(100..1500))).await;
        let victim = random.random_range(0..daemons.len());
        if random.random_bool(0.3) {
            daemons[victim].kill9().await;
            daemons[victim] = launch(database).spawn();
        } else {
            daemons[victim].freeze().await;
            sleep(Duration::from_millis(random.random_range(50..1500))).await;
            daemons[victim].thaw();
        }
        shared.faults.fetch_add(1, Ordering::Relaxed);
    }
}

async fn write(client: Client, mut random: StdRng, shared: Arc<Shared>) {
    while !shared.ended() {
        // Most statements commit by themselves; some transactions are long.
        let long = random.random_bool(0.03);
        let count = if long { random.random_range(1..4) } else { 1 };
        if long {
            execute(&client, "begin").await.expect("a session is alive");
        }
        for _ in 0..count {
            match execute(&client, &statement(&mut random)).await {
                Ok(()) => shared.writes.fetch_add(1, Ordering::Relaxed),
                // A deadlock between two of the long transactions.
                Err(error) if error.code().is_some() => break,
                Err(error) => panic!("a writer lost its session: {error:?}"),
            };
        }
        if long {
            sleep(Duration::from_millis(random.random_range(10..2500))).await;
            execute(&client, "commit")
                .await
                .expect("a session is alive");
        }
        sleep(Duration::from_millis(random.random_range(1..12))).await;
    }
}

async fn execute(client: &Client, sql: &str) -> Result<(), Error> {
    client.batch_execute(sql).await
}

/// One statement, on a random run of the flow `F`.
fn statement(random: &mut StdRng) -> String {
    let one: f64 = random.random();
    // Newer runs more often.
    let place = one.sqrt();
    let run = format!(
        "(select run_number from runs_v3
           where flow_id = 'F' and run_number >= {place} * (select last_value from runs_v3_run_number_seq)
           order by run_number limit 1)"
    );
    let cutoff = CUTOFF_SECS;
    let age = match random.random_range(0..10) {
        0..4 => random.random_range(-2..3),
        4..8 => random.random_range(cutoff - 5..cutoff + 1),
        8 => random.random_range(-cutoff - 4..-cutoff + 2),
        _ => random.random_range(0..10_000),
    };
    let heartbeat = format!("extract(epoch from clock_timestamp())::bigint - ({age})");
    match random.random_range(0..100) {
        0..14 => format!(
            "insert into runs_v3 (flow_id, user_name, ts_epoch, tags, system_tags, last_heartbeat_ts)
             values ('F', 'u{}', (extract(epoch from clock_timestamp()) * 1000)::bigint, '[]', '[]', {})",
            random.random_range(0..3),
            if random.random_bool(0.1) { "null".to_owned() } else { heartbeat },
        ),
        14..44 => format!(
            "update runs_v3 set last_heartbeat_ts = {heartbeat}
              where flow_id = 'F' and run_number = {run}
                and (last_heartbeat_ts is null or last_heartbeat_ts <= {heartbeat})
                -- A heartbeat that leaves the range ahead fires no trigger.
                and (run_status = 'failed' or {age} >= -{cutoff} + 3)"
        ),
        44..54 => format!(
            "update runs_v3 set tags = to_jsonb(array['t{}']) where flow_id = 'F' and run_number = {run}",
            random.random_range(0..9)
        ),
        54..60 => format!(
            "delete from metadata_v3 where id = (select id from metadata_v3 where flow_id = 'F' and run_number = {run} limit 1)"
        ),
        60..62 => format!("delete from runs_v3 where flow_id = 'F' and run_number = {run}"),
        value => format!(
            "insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
             select 'F', r.run_number, 'end', 1, '{}', '{}', '', (extract(epoch from clock_timestamp()) * 1000)::bigint - {}
               from runs_v3 r
              where r.flow_id = 'F' and r.run_number = {run}",
            if value < 74 { "attempt" } else { "attempt_ok" },
            ["True", "False", "rubbish"][random.random_range(0..3)],
            random.random_range(0..50),
        ),
    }
}

/// The status of each run of the flow by the definition, at the time `at`.
fn definition(at: &str) -> String {
    format!(
        "status_indexer.status(status_indexer.reason(e.ok, e.ok_ts, e.retry_ts, r.last_heartbeat_ts, {at},
                                                     status_indexer.cutoff()))"
    )
}

/// Compares all runs in one statement. A run whose deadline passes during the statement may have the
/// status from before or from after.
async fn read_whole(client: Client, shared: Arc<Shared>) {
    let (before, after) = (
        definition("status_indexer.read_clock()"),
        definition("a.at_secs"),
    );
    let sql = format!(
        "with seen as materialized (
           select v.run_number, v.status, count(*) over (partition by v.run_number) as times
             from status_indexer.runs v
            where v.flow_id = 'F'
         ), after as materialized (
           select (select count(*) from seen) as runs, status_indexer.clock() as at_secs
         ), defined as materialized (
           select r.run_number, {before} as before, {after} as after, r.run_status, r.last_heartbeat_ts,
                  exists (select from status_indexer.queue q where q.run_number = r.run_number) as queued
             from after a
            cross join runs_v3 r
            cross join lateral status_indexer.evidence(r.flow_id, r.run_number) e
            where r.flow_id = 'F'
         )
         select (select runs from after),
                format('run %s: seen %s (%s times), %s or %s by the definition, stored %s, queued %s, '
                       'heartbeat %s, clock %s', run_number, s.status, s.times, d.before, d.after,
                       d.run_status, d.queued, d.last_heartbeat_ts, status_indexer.read_clock())
           from seen s
           full join defined d using (run_number)
          where (s.times = 1 and s.status in (d.before, d.after)) is not true
          union all
         select (select runs from after), null"
    );
    let statement = client.prepare(&sql).await.expect("valid SQL");
    while !shared.ended() {
        let rows = client.query(&statement, &[]).await;
        let rows = rows.expect("the view can be read");
        let runs: i64 = rows[0].get(0);
        shared
            .comparisons
            .fetch_add(runs.unsigned_abs(), Ordering::Relaxed);
        for row in &rows {
            if let Some(difference) = row.get::<_, Option<String>>(1) {
                shared.report_difference(difference).await;
            }
        }
        sleep(Duration::from_millis(3)).await;
    }
}

/// The runs of a snapshot, newest first, with their users and statuses.
type Defined = BTreeMap<std::cmp::Reverse<(i64, i32)>, (String, String)>;

async fn defined(client: &Client) -> Defined {
    let status = definition("c.at_secs");
    let sql = format!(
        "with c as materialized (select status_indexer.clock() as at_secs)
         select r.ts_epoch, r.run_number, r.user_name::text, {status}
           from c
          cross join runs_v3 r
          cross join lateral status_indexer.evidence(r.flow_id, r.run_number) e
          where r.flow_id = 'F'"
    );
    let rows = client.query(&sql, &[]).await.expect("the runs can be read");
    rows.iter()
        .map(|row| {
            let key = std::cmp::Reverse((row.get(0), row.get(1)));
            (key, (row.get(2), row.get(3)))
        })
        .collect()
}

/// Compares random pages and single runs with the definition, in one snapshot, which may be old.
async fn read_pages(client: Client, mut random: StdRng, shared: Arc<Shared>) {
    while !shared.ended() {
        execute(
            &client,
            "begin transaction isolation level repeatable read read only",
        )
        .await
        .expect("a session is alive");
        // The first statement takes the snapshot.
        execute(&client, "select from runs_v3 limit 1")
            .await
            .expect("the runs can be read");
        if random.random_bool(0.2) {
            sleep(Duration::from_millis(random.random_range(0..2000))).await;
        }
        let before = defined(&client).await;
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(page(&client, &mut random, &before).await);
        }
        let single = single(&client, &mut random, &before).await;
        let after = defined(&client).await;
        execute(&client, "commit")
            .await
            .expect("a session is alive");
        if before != after {
            shared.moving.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        for page in seen.into_iter().chain([single]) {
            shared.pages.fetch_add(1, Ordering::Relaxed);
            shared
                .comparisons
                .fetch_add(page.expected.len() as u64 + 1, Ordering::Relaxed);
            if page.seen != page.expected {
                let text = format!(
                    "{}\nseen     {:?}\nexpected {:?}",
                    page.sql, page.seen, page.expected
                );
                shared.report_difference(text).await;
            }
        }
        sleep(Duration::from_millis(5)).await;
    }
}

struct Page {
    sql: String,
    seen: Vec<(i32, String)>,
    expected: Vec<(i32, String)>,
}

/// A page of random statuses, with a random cursor or offset and sometimes another filter.
async fn page(client: &Client, random: &mut StdRng, runs: &Defined) -> Page {
    let mut wanted: Vec<&str> = ["running", "completed", "failed"]
        .into_iter()
        .filter(|_| random.random_bool(0.5))
        .collect();
    if wanted.is_empty() {
        wanted.push("failed");
    }
    let limit = random.random_range(1..30_usize);
    let offset = random.random_range(0..2) * random.random_range(0..20_usize);
    let cursor = runs
        .keys()
        .nth(random.random_range(0..runs.len().max(1)))
        .filter(|_| random.random_bool(0.5))
        .map(|key| key.0);
    let user = random
        .random_bool(0.3)
        .then(|| format!("u{}", random.random_range(0..3)));
    // The planner removes parts of the view for constants, the executor for parameters.
    let params: &[&(dyn ToSql + Sync)] = if random.random_bool(0.5) {
        &[&wanted]
    } else {
        &[]
    };
    let condition = if params.is_empty() {
        format!("status in ('{}')", wanted.join("', '"))
    } else {
        "status = any ($1)".to_owned()
    };
    let mut sql = format!(
        "select run_number, status from status_indexer.runs where flow_id = 'F' and {condition}"
    );
    if let Some((ts_epoch, run_number)) = cursor {
        let _ = write!(
            sql,
            " and (ts_epoch, run_number) < ({ts_epoch}, {run_number})"
        );
    }
    if let Some(user) = &user {
        let _ = write!(sql, " and user_name = '{user}'");
    }
    let _ = write!(
        sql,
        " order by ts_epoch desc, run_number desc limit {limit} offset {offset}"
    );
    let rows = client
        .query(&sql, params)
        .await
        .expect("the view can be read");
    Page {
        seen: rows.iter().map(|row| (row.get(0), row.get(1))).collect(),
        expected: runs
            .iter()
            .filter(|(key, (owner, status))| {
                wanted.contains(&status.as_str())
                    && user.as_ref().is_none_or(|user| user == owner)
                    && cursor.is_none_or(|cursor| key.0 < cursor)
            })
            .skip(offset)
            .take(limit)
            .map(|(key, (_, status))| (key.0.1, status.clone()))
            .collect(),
        sql,
    }
}

/// One run by its key.
async fn single(client: &Client, random: &mut StdRng, runs: &Defined) -> Page {
    let chosen = runs.iter().nth(random.random_range(0..runs.len().max(1)));
    let run = chosen.map_or(0, |(key, _)| key.0.1);
    let sql = format!(
        "select run_number, status from status_indexer.runs where flow_id = 'F' and run_number = {run}"
    );
    let rows = client.query(&sql, &[]).await.expect("the view can be read");
    Page {
        sql,
        seen: rows.iter().map(|row| (row.get(0), row.get(1))).collect(),
        expected: chosen
            .map(|(_, (_, status))| (run, status.clone()))
            .into_iter()
            .collect(),
    }
}
