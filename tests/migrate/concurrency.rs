//! Migrations while other migrations run, and while sessions write or hold locks and snapshots.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use testkit::daemon::Launch;
use testkit::database::Database;
use tokio_postgres::Client;

use super::{check_complete, execute, fill, migrate, number, succeeded};

#[tokio::test]
async fn concurrent_migrations_install_everything_once() {
    let database = Database::fresh().await;
    fill(&database.client().await, 5_000).await;
    let up = || async { migrate(&database, &["up"]).await };
    let (a, b, c) = tokio::join!(up(), up(), up());
    for output in [a, b, c] {
        succeeded(&output);
    }
    check_complete(&database).await;
}

/// Writes as the service does until stopped; returns the duration of the slowest statement.
async fn write(client: Client, statements: &[&str], stop: Arc<AtomicBool>) -> (Duration, usize) {
    let (mut longest, mut count) = (Duration::ZERO, 0);
    while !stop.load(Ordering::Relaxed) {
        for statement in statements {
            let start = Instant::now();
            execute(&client, statement).await;
            longest = longest.max(start.elapsed());
            count += 1;
        }
    }
    (longest, count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn writers_wait_less_than_a_second_during_up_and_down() {
    let database = Database::fresh().await;
    fill(&database.client().await, 60_000).await;
    let stop = Arc::new(AtomicBool::new(false));
    let runs: &[&str] = &[
        "insert into runs_v3 (flow_id, ts_epoch, last_heartbeat_ts) values ('Old', 1, extract(epoch from now())::bigint)",
        "update runs_v3 set last_heartbeat_ts = extract(epoch from now())::bigint
          where flow_id = 'Old' and run_number = (random() * 1000)::int",
    ];
    let metadata: &[&str] = &[
        "insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
         values ('Old', (random() * 1000)::int, 'end', 1, 'attempt_ok', 'True', 'x', 1)",
        "select count(*) from metadata_v3 where flow_id = 'Old' and run_number = 5",
    ];
    let on_runs = tokio::spawn(write(database.client().await, runs, Arc::clone(&stop)));
    let on_metadata = tokio::spawn(write(database.client().await, metadata, Arc::clone(&stop)));
    for args in [["up"], ["down"], ["up"]] {
        succeeded(&migrate(&database, &args).await);
    }
    stop.store(true, Ordering::Relaxed);
    for writer in [on_runs, on_metadata] {
        let (longest, count) = writer.await.expect("no write fails");
        assert!(count > 100, "it wrote during the migration: {count}");
        assert!(
            longest < Duration::from_millis(1_000),
            "a writer waited {longest:?}"
        );
    }
    check_complete(&database).await;
}

#[tokio::test]
async fn up_waits_for_a_lock_without_blocking_writers_and_logs_its_holder() {
    let database = Database::fresh().await;
    let (holder, writer) = (database.client().await, database.writer().await);
    execute(&holder, "begin; select count(*) from runs_v3").await;
    let pid = number(&holder, "select pg_backend_pid()::bigint").await;
    let up = Launch::on(&database).args(&["migrate", "up"]).spawn();
    let line = up
        .logged("who holds the lock", |line| line.get("holders").is_some())
        .await;
    let holders = line["holders"].as_str().unwrap_or_default();
    assert!(holders.contains(&format!("pid {pid} ")), "{line}");
    writer.insert_flow("F").await;
    let start = Instant::now();
    for _ in 0..20 {
        writer.insert_run("F", None).await;
    }
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    execute(&holder, "commit").await;
    assert!(up.exit().await.success());
    check_complete(&database).await;
}

#[tokio::test]
async fn an_index_build_waits_for_an_old_snapshot_and_logs_its_holder() {
    let database = Database::fresh().await;
    let holder = database.client().await;
    let pid = number(&holder, "select pg_backend_pid()::bigint").await;
    execute(&holder, "begin isolation level repeatable read; select 1").await;
    let up = Launch::on(&database).args(&["migrate", "up"]).spawn();
    let line = up
        .logged("what the index waits for", |line| {
            line.get("progress").is_some()
        })
        .await;
    let progress = line["progress"].as_str().unwrap_or_default();
    assert!(
        progress.contains(&format!("waiting for pid {pid}")),
        "{line}"
    );
    execute(&holder, "commit").await;
    assert!(up.exit().await.success());
    check_complete(&database).await;
}
