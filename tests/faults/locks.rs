//! Rows and tables that other sessions lock, and the locks of the indexer itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use testkit::postgres::{Options, Postgres};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config};

use super::{named, run};
use testkit::daemon::Launch;
use testkit::database::{Database, connect};
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::wait::{eventually, within};

const TIMEOUT: Duration = Duration::from_secs(30);

/// How long the row is locked: several times each timeout of the indexer.
const HELD: Duration = Duration::from_secs(6);

/// A server that logs lock waits of more than 200 ms, the longest wait that the indexer may cause;
/// it is above the lock timeout of the indexer.
async fn server_that_logs_lock_waits() -> Postgres {
    let options = Options::default()
        .set("log_lock_waits", "on")
        .set("deadlock_timeout", "200ms");
    Postgres::start(options).await.expect("a server of our own")
}

/// The lock waits that the server has logged for sessions of this name.
fn long_waits(server: &Postgres, name: &str) -> Vec<String> {
    let log = server.log_tail(usize::MAX);
    let of_name = format!(" {name} ");
    log.lines()
        .filter(|line| line.contains(&of_name) && line.contains("still waiting for"))
        .map(str::to_owned)
        .collect()
}

/// Transactions that are repeated until stopped.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    task: JoinHandle<Duration>,
}

impl Load {
    /// Repeats one on a connection of that name; keeps the longest duration.
    fn start<D, F>(config: &Config, name: &str, deed: D) -> Self
    where
        D: Fn(Arc<Client>, u64) -> F + Send + 'static,
        F: Future<Output = ()> + Send,
    {
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&done));
        let mut config = config.clone();
        config.application_name(name);
        let task = tokio::spawn(async move {
            let client = Arc::new(connect(&config).await);
            let mut longest = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                deed(Arc::clone(&client), counted.load(Ordering::Relaxed)).await;
                longest = longest.max(start.elapsed());
                counted.fetch_add(1, Ordering::Relaxed);
            }
            longest
        });
        Self { stop, done, task }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Stops it; returns the count and the longest duration.
    async fn end(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let longest = within(TIMEOUT, "the writers stop", self.task).await;
        let longest = longest.expect("nothing in the load fails");
        (self.done.load(Ordering::Relaxed), longest)
    }
}

/// Heartbeats of one run after the other, as fast as the server accepts them.
fn heartbeats(config: &Config, ids: &[i32]) -> Load {
    const HEARTBEAT: &str = "\
update runs_v3
   set last_heartbeat_ts = extract(epoch from clock_timestamp())::bigint
 where flow_id = 'F'
   and run_number = $1";
    let ids = ids.to_vec();
    Load::start(config, "heartbeats", move |client, count| {
        let id = one_of(&ids, count);
        async move {
            let written = client.execute(HEARTBEAT, &[&id]).await;
            assert_eq!(written.expect("a heartbeat can be written"), 1);
        }
    })
}

/// Evidence that changes one run after the other, some hundred per second.
fn evidence(config: &Config, ids: &[i32]) -> Load {
    const EVIDENCE: &str = "\
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
values ('F', $1, 'end', 1, 'attempt_ok', $2, 'attempt_ok',
        (extract(epoch from clock_timestamp()) * 1000)::bigint)";
    let ids = ids.to_vec();
    Load::start(config, "evidence", move |client, count| {
        let id = i64::from(one_of(&ids, count));
        async move {
            let value = if count % 3 == 0 { "False" } else { "True" };
            let written = client.execute(EVIDENCE, &[&id, &value]).await;
            assert_eq!(written.expect("evidence can be written"), 1);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
}

/// Tags of one run after the other, read and written in a serializable transaction that is retried
/// after a serialization failure, as by the metadata service.
fn tags(config: &Config, ids: &[i32]) -> Load {
    const READ: &str = "select tags from runs_v3 where flow_id = 'F' and run_number = $1";
    const WRITE: &str = "\
update runs_v3
   set tags = tags || to_jsonb($2::text)
 where flow_id = 'F'
   and run_number = $1";
    let ids = ids.to_vec();
    Load::start(config, "tags", move |client, count| {
        let id = one_of(&ids, count);
        async move {
            loop {
                run(&client, "begin isolation level serializable").await;
                let tried = async {
                    client.query_one(READ, &[&id]).await?;
                    client.execute(WRITE, &[&id, &count.to_string()]).await?;
                    client.batch_execute("commit").await
                };
                let Err(error) = tried.await else { return };
                run(&client, "rollback").await;
                let code = error.code().map_or("", |code| code.code());
                assert_eq!(code, "40001", "tags cannot be written: {error:?}");
            }
        }
    })
}

/// Runs in a scattered order.
fn one_of(ids: &[i32], count: u64) -> i32 {
    let count = usize::try_from(count).expect("counts are small");
    ids[count * 31 % ids.len()]
}

async fn runs(database: &Database, count: usize) -> Vec<i32> {
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let now = writer.now_secs().await;
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(writer.insert_run("F", Some(now)).await);
    }
    ids
}

async fn deadlocks(client: &Client) -> i64 {
    // Sessions report when they become idle or end; the relevant ones have ended.
    const DEADLOCKS: &str = "\
select deadlocks
  from pg_stat_database
 where datname = current_database()";
    client
        .query_one(DEADLOCKS, &[])
        .await
        .expect("statistics can be read")
        .get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_run_delays_no_other_run_and_no_heartbeat() {
    let server = server_that_logs_lock_waits().await;
    let database = Database::on(&server).await;
    let (writer, holder) = (database.writer().await, database.client().await);
    let daemon = Launch::on(&database).start().await;
    let ids = runs(&database, 200).await;
    let (locked, others) = ids.split_last().expect("there are some");
    let now = writer.now_ms().await;
    let lock = format!("begin; select from runs_v3 where run_number = {locked} for update");
    run(&holder, &lock).await;
    let start = Instant::now();
    writer.attempt_ok("F", *locked, "True", now).await;
    let beating = heartbeats(&database.config(), others);
    let turning = evidence(&database.config(), others);

    let mut shortest = Duration::MAX;
    while start.elapsed() < HELD {
        let id = writer.insert_run("F", Some(now / 1000)).await;
        let written = Instant::now();
        let now = writer.now_ms().await;
        writer.attempt_ok("F", id, "True", now).await;
        eventually_status(&writer, "F", id, "completed").await;
        shortest = shortest.min(written.elapsed());
        assert_eq!(writer.status("F", *locked).await, "running");
    }
    run(&holder, "commit").await;
    let released = Instant::now();
    eventually_status(&writer, "F", *locked, "completed").await;
    let settled = released.elapsed();
    let (turned, _) = turning.end().await;
    let (beats, longest) = beating.end().await;
    println!(
        "{beats} heartbeats, the longest {longest:?}; {turned} events; another run's status after \
         {shortest:?} at best; the locked run's {settled:?} after its release"
    );
    assert!(
        settled < Duration::from_secs(5),
        "settled after {settled:?}"
    );
    eventually_no_drift(writer.client()).await;
    assert_eq!(long_waits(&server, "heartbeats"), Vec::<String>::new());
    assert!(daemon.metric("status_indexer_rows_locked_total").await > Some(0.0));
    assert!(daemon.terminate().await.success());
    server.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_neither_deadlock_with_nor_delay_heartbeats_and_tags() {
    let server = server_that_logs_lock_waits().await;
    let database = Database::on(&server).await;
    let writer = database.writer().await;
    let daemon = Launch::on(&database).start().await;
    let ids = runs(&database, 60).await;
    let config = database.config();
    let loads = [
        heartbeats(&config, &ids),
        tags(&config, &ids),
        tags(&config, &ids),
        evidence(&config, &ids),
        evidence(&config, &ids),
    ];
    for load in &loads {
        eventually(TIMEOUT, "the writers are running", async || {
            load.done() > 600
        })
        .await;
    }
    for load in loads {
        let (done, longest) = load.end().await;
        println!("{done} times, the longest {longest:?}");
    }
    eventually_no_drift(writer.client()).await;
    for name in ["heartbeats", "tags", "evidence"] {
        assert_eq!(long_waits(&server, name), Vec::<String>::new());
    }
    assert!(daemon.terminate().await.success());
    let log = server.log_tail(usize::MAX);
    assert!(!log.contains("deadlock detected"), "{log}");
    assert_eq!(deadlocks(&database.client().await).await, 0);
    server.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_default_isolation_level_of_the_role_works_and_read_only_too() {
    let database = Database::fresh().await;
    let (admin, writer) = (database.client().await, database.writer().await);
    writer.insert_flow("F").await;
    let defaults = [
        ("repeatable read", "off"),
        ("serializable", "off"),
        ("serializable", "on"),
    ];
    for (number, (level, read_only)) in defaults.into_iter().enumerate() {
        let role = format!("odd_{}_{number}", database.name());
        run(
            &admin,
            &format!(
                "create role {role} login superuser;
                 alter role {role} set default_transaction_isolation = '{level}';
                 alter role {role} set default_transaction_read_only = {read_only};
                 alter role {role} set default_transaction_deferrable = on;
                 alter role {role} set search_path = nowhere, public;"
            ),
        )
        .await;
        let mut url = database.url().to_owned();
        url = url.replace("postgres@", &format!("{role}@"));
        // The first daemon also migrates.
        let daemon = Launch::on(&database)
            .env("DATABASE_URL", &url)
            .start()
            .await;
        let now = writer.now_ms().await;
        let id = writer.insert_run("F", Some(now / 1000)).await;
        writer.attempt_ok("F", id, "True", now).await;
        eventually_status(&writer, "F", id, "completed").await;
        let late = writer.insert_run("F", Some(now / 1000 - 1000)).await;
        eventually_status(&writer, "F", late, "failed").await;
        eventually_no_drift(&admin).await;
        assert!(daemon.terminate().await.success());
        run(
            &admin,
            &format!(
                "reassign owned by {role} to postgres; drop owned by {role}; drop role {role}"
            ),
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_is_waited_for_in_short_attempts() {
    let database = Database::fresh().await;
    let (writer, holder) = (database.writer().await, database.client().await);
    let daemon = named(&database, "short").start().await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let id = writer.insert_run("F", Some(now / 1000)).await;
    run(&holder, "begin; lock table runs_v3 in exclusive mode").await;
    writer.attempt_ok("F", id, "True", now).await;
    eventually(TIMEOUT, "a lock timeout is counted", async || {
        daemon.metric("status_indexer_lock_timeouts_total").await >= Some(3.0)
    })
    .await;
    assert!(matches!(daemon.get("/healthz").await, Some((200, _))));
    run(&holder, "commit").await;
    eventually_status(&writer, "F", id, "completed").await;
    eventually_no_drift(writer.client()).await;
}
