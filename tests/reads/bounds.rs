//! What readers rely on without looking: until when no deadline passes, and where the queue begins.
//!
//! Random transactions of several sessions, which begin, write, wait and commit in any order: new runs,
//! heartbeats, evaluations, publications with marks of any age, as of leaders that change. After each
//! step a snapshot is checked: no run that readers would take from the column has an earlier deadline,
//! and no event of the queue an earlier id.

use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::mutation::mutate;
use super::{migrate, run};
use testkit::database::Database;
use testkit::drift::SOON;
use testkit::postgres::{Options, Postgres};
use testkit::seed::Seed;
use testkit::wait::eventually;

/// A server of the test's own: bounds wait for the transactions of all databases.
async fn own_server() -> Postgres {
    let server = Postgres::start(Options::default()).await;
    server.expect("a server of our own")
}

/// Sessions with a transaction each.
const WRITERS: usize = 5;

/// Sessions that publish, as many leaders.
const PUBLISHERS: usize = 2;

/// The arguments of one publication: time, transaction id, id of the queue.
type Mark = (f64, i64, i64);

struct Interleaving {
    _database: Database,
    random: StdRng,
    cutoff: i64,
    observer: Client,
    writers: Vec<Client>,
    publishers: Vec<Option<Client>>,
    /// Publications in progress, which may wait for a writer's lock.
    publishing: Vec<JoinHandle<(usize, Client, Option<Mark>)>>,
    marks: Vec<Mark>,
    published: usize,
}

impl Interleaving {
    async fn new(server: &Postgres, random: StdRng, cutoff: i64) -> Self {
        let database = Database::on(server).await;
        migrate(&database, cutoff).await;
        let observer = database.client().await;
        run(
            &observer,
            "insert into flows_v3 (flow_id, ts_epoch) values ('F', 0);
             update status_indexer.state set valid_since = now()",
        )
        .await;
        let mut writers = Vec::new();
        for _ in 0..WRITERS {
            let client = database.client().await;
            run(&client, "set lock_timeout = '20ms'").await;
            writers.push(client);
        }
        let mut publishers = Vec::new();
        for _ in 0..PUBLISHERS {
            let client = database.client().await;
            run(&client, "set lock_timeout = '2s'").await;
            publishers.push(Some(client));
        }
        Self {
            _database: database,
            random,
            cutoff,
            observer,
            writers,
            publishers,
            publishing: Vec::new(),
            marks: Vec::new(),
            published: 0,
        }
    }

    /// One step, and the violations that a snapshot after it shows.
    async fn step(&mut self) -> Vec<String> {
        match self.random.random_range(0..100) {
            0..78 => self.write().await,
            78..96 => self.publish().await,
            _ => tokio::time::sleep(Duration::from_millis(self.random.random_range(1..300))).await,
        }
        self.collect(false).await;
        self.violations().await
    }

    /// A statement of a random session. An error (a lock) ends its transaction.
    async fn write(&mut self) {
        let writer = self.random.random_range(0..WRITERS);
        let age = self.age();
        let one: f64 = self.random.random();
        let some_run = format!(
            "(select run_number from runs_v3 order by abs(run_number - {one} *
                (select last_value from runs_v3_run_number_seq)) limit 1)"
        );
        let sql = match self.random.random_range(0..100) {
            0..20 => "begin".to_owned(),
            20..42 => "commit".to_owned(),
            42..44 => "rollback".to_owned(),
            44..62 => format!(
                "insert into runs_v3 (flow_id, user_name, ts_epoch, last_heartbeat_ts)
                 values ('F', 'u', 1, extract(epoch from clock_timestamp())::bigint - ({age}))"
            ),
            // As upstream: heartbeats only move on.
            62..72 => format!(
                "update runs_v3 set last_heartbeat_ts = extract(epoch from clock_timestamp())::bigint - ({age})
                  where run_number = {some_run}
                    and last_heartbeat_ts <= extract(epoch from clock_timestamp())::bigint - ({age})"
            ),
            72..77 => format!(
                "insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
                 select 'F', {some_run}, 'end', 1, f.name, f.value, '', {one} * 1000
                   from (values ('attempt', '0'), ('attempt_ok', 'False')) f (name, value)
                  where exists (select from runs_v3)"
            ),
            77..92 => "select status_indexer.drain(0, 7, null)".to_owned(),
            _ => "select a.applied from status_indexer.due(null, true) d
                   cross join lateral status_indexer.apply(d.flow_ids, d.run_numbers, null) a"
                .to_owned(),
        };
        let client = &self.writers[writer];
        if client.batch_execute(&sql).await.is_err() {
            run(client, "rollback").await;
        }
    }

    /// The age of a heartbeat: often near one of the limits.
    fn age(&mut self) -> i64 {
        let cutoff = self.cutoff;
        match self.random.random_range(0..6) {
            0..2 => self.random.random_range(-6..7),
            2 => self.random.random_range(cutoff - 3..cutoff + 4),
            3 => -self.random.random_range(cutoff - 3..cutoff + 4),
            _ => self.random.random_range(0..=cutoff),
        }
    }

    /// A publication with a mark of any age begins; it may have to wait for a lock.
    async fn publish(&mut self) {
        const PUBLISH: &str = "\
select published, new_secs, new_xid, new_queue_id
  from status_indexer.publish_read_bounds($1, $2, $3)";
        let number = self.random.random_range(0..PUBLISHERS);
        let Some(client) = self.publishers[number].take() else {
            return;
        };
        let mark = match self.marks.len() {
            0 => None,
            known => Some(self.marks[self.random.random_range(known.saturating_sub(6)..known)]),
        };
        self.publishing.push(tokio::spawn(async move {
            let params: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [
                &mark.map(|mark| mark.0),
                &mark.map(|mark| mark.1),
                &mark.map(|mark| mark.2),
            ];
            let new = client.query_one(PUBLISH, &params).await.ok();
            let new = new.map(|row| (row.get(1), row.get(2), row.get(3)));
            (number, client, new)
        }));
        if self.random.random_bool(0.7) {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    /// Takes the results of publications that are complete, or of all.
    async fn collect(&mut self, all: bool) {
        let mut rest = Vec::new();
        for task in std::mem::take(&mut self.publishing) {
            if all || task.is_finished() {
                let (number, client, mark) = task.await.expect("no panic");
                self.publishers[number] = Some(client);
                self.marks.extend(mark);
                self.published += 1;
            } else {
                rest.push(task);
            }
        }
        self.publishing = rest;
    }

    async fn violations(&self) -> Vec<String> {
        const VIOLATIONS: &str = "\
select format('run %s expires at %s, and no deadline passes until %s',
              r.run_number, r.last_heartbeat_ts + s.cutoff_secs, s.deadlines_until)
  from status_indexer.state s
  join runs_v3 r on r.run_status = 'running' and to_timestamp(r.last_heartbeat_ts + s.cutoff_secs) < s.deadlines_until
 cross join lateral status_indexer.evidence(r.flow_id, r.run_number) e
 where status_indexer.reason(e.ok, e.ok_ts, e.retry_ts, r.last_heartbeat_ts,
                             r.last_heartbeat_ts + s.cutoff_secs + 1, s.cutoff_secs) = 'heartbeat_lost'
   and not exists (select from status_indexer.queue q where q.run_number = r.run_number)
 union all
select format('the heartbeat of run %s counts from %s, and no deadline passes until %s',
              r.run_number, r.last_heartbeat_ts - s.cutoff_secs, s.deadlines_until)
  from status_indexer.state s
  join runs_v3 r on r.run_status = 'failed' and to_timestamp(r.last_heartbeat_ts - s.cutoff_secs) < s.deadlines_until
 cross join lateral status_indexer.evidence(r.flow_id, r.run_number) e
 where to_timestamp(r.last_heartbeat_ts + s.cutoff_secs) > clock_timestamp()
   and status_indexer.reason(e.ok, e.ok_ts, e.retry_ts, r.last_heartbeat_ts,
                             r.last_heartbeat_ts - s.cutoff_secs + 1, s.cutoff_secs) = 'heartbeat'
   and not exists (select from status_indexer.queue q where q.run_number = r.run_number)
 union all
select format('event %s, and the queue begins at %s', q.id, s.first_queue_id)
  from status_indexer.state s
  join status_indexer.queue q on q.id < s.first_queue_id";
        let rows = self.observer.query(VIOLATIONS, &[]).await;
        let rows = rows.expect("the tables can be read");
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// How often bounds were published that tell readers something.
    async fn publications(&self) -> i64 {
        let sql = "select read_bounds_version from status_indexer.state";
        let row = self.observer.query_one(sql, &[]).await;
        row.expect("the state exists").get(0)
    }
}

/// The cutoffs: with the shorter one, a heartbeat counts as fresh for only a second longer than an
/// insert's.
const CUTOFFS: [i64; 2] = [12, 100];

#[tokio::test(flavor = "multi_thread")]
async fn no_interleaving_makes_the_bounds_too_late() {
    let seed = Seed::from_env();
    let server = own_server().await;
    for (number, cutoff) in CUTOFFS.into_iter().enumerate() {
        let mut interleaving =
            Interleaving::new(&server, seed.generator(number as u64), cutoff).await;
        for step in 0..900 {
            let violations = interleaving.step().await;
            assert!(
                violations.is_empty(),
                "{seed}, cutoff {cutoff}, step {step}: {violations:?}"
            );
        }
        interleaving.collect(true).await;
        let (calls, versions) = (interleaving.published, interleaving.publications().await);
        println!("cutoff {cutoff}: {calls} publications called, {versions} changes");
        assert!(versions > 30, "{calls} publications, {versions} changes");
    }
}

/// What a programming error would change: in which function, which text, and by what.
const MUTATIONS: [(&str, &str, &str, &str); 6] = [
    (
        "transactions in progress are forgotten",
        "publish_read_bounds",
        "txid_snapshot_xmin(txid_current_snapshot()) >= mark_xid",
        "true",
    ),
    (
        "an evaluation does not report an old heartbeat",
        "apply",
        "next_deadline < now_secs",
        "false and next_deadline < now_secs",
    ),
    (
        "fresh heartbeats are too old",
        "fresh_secs",
        "greatest(6,",
        "least(0,",
    ),
    (
        "the mark's id of the queue is not used",
        "publish_read_bounds",
        "least(mark_queue_id + 1,",
        "coalesce(null::bigint,",
    ),
    (
        "runs whose deadline has passed are left out",
        "publish_read_bounds",
        "= 'heartbeat_lost'",
        "= 'none'",
    ),
    (
        "heartbeats ahead of the clock are left out",
        "publish_read_bounds",
        "min(t.due_secs)",
        "max(null::bigint)",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_mutation_of_the_bounds_is_found() {
    let seed = Seed::from_env();
    let server = own_server().await;
    for (number, (what, function, text, replacement)) in MUTATIONS.into_iter().enumerate() {
        let mut found = false;
        'interleavings: for attempt in 0..10 {
            let random = seed.generator((100 * number + attempt) as u64);
            let mut interleaving = Interleaving::new(&server, random, CUTOFFS[attempt % 2]).await;
            mutate(&interleaving.observer, function, text, replacement).await;
            for _ in 0..1500 {
                if !interleaving.step().await.is_empty() {
                    found = true;
                    break 'interleavings;
                }
            }
        }
        assert!(found, "{seed}: not found: {what}");
    }
}

/// A failed run gets an older heartbeat. While a publication is in progress, whose snapshot has the run
/// as failed, an evaluation that makes it running commits. Returns the violations afterwards.
async fn overtaken_publication(interleaving: &mut Interleaving) -> Vec<String> {
    const WAITS: &str = "\
select exists (select
                 from pg_stat_activity
                where datname = current_database()
                  and wait_event_type = 'Lock'
                  and query like '%publish_read_bounds%')";
    let observer = &interleaving.observer;
    run(
        observer,
        "insert into runs_v3 (flow_id, user_name, ts_epoch, last_heartbeat_ts)
         values ('F', 'u', 1, extract(epoch from clock_timestamp())::bigint - 1000)",
    )
    .await;
    run(observer, "select status_indexer.drain(0, 10, null)").await;
    let mark = observer
        .query_one(
            "select new_secs, new_xid, new_queue_id
               from status_indexer.publish_read_bounds(null, null, null)",
            &[],
        )
        .await
        .expect("a mark");
    interleaving.marks = vec![(mark.get(0), mark.get(1), mark.get(2))];
    run(
        observer,
        "update runs_v3 set last_heartbeat_ts = extract(epoch from clock_timestamp())::bigint - 60",
    )
    .await;
    let evaluates = "begin; select status_indexer.drain(0, 10, null)";
    run(&interleaving.writers[0], evaluates).await;
    while interleaving.publishing.is_empty() {
        interleaving.publish().await;
    }
    eventually(SOON, "the publication waits", async || {
        let waits = interleaving.observer.query_one(WAITS, &[]).await;
        waits.expect("the catalog can be read").get(0)
    })
    .await;
    run(&interleaving.writers[0], "commit").await;
    interleaving.collect(true).await;
    interleaving.violations().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_an_evaluation_overtakes_is_void() {
    let seed = Seed::from_env();
    let server = own_server().await;
    let mut interleaving = Interleaving::new(&server, seed.generator(0), 100).await;
    let violations = overtaken_publication(&mut interleaving).await;
    assert!(violations.is_empty(), "{violations:?}");

    let mut interleaving = Interleaving::new(&server, seed.generator(1), 100).await;
    let (text, replacement) = ("where read_bounds_version = version", "where true");
    mutate(
        &interleaving.observer,
        "publish_read_bounds",
        text,
        replacement,
    )
    .await;
    let violations = overtaken_publication(&mut interleaving).await;
    assert!(!violations.is_empty(), "the mutation is not found");
}
