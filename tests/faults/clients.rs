//! HTTP clients that are silent, that do not read, or that are too many: none of them harms the
//! indexer.

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use testkit::daemon::{Daemon, Launch};
use testkit::database::Database;
use testkit::drift::eventually_status;
use testkit::wait::{eventually, eventually_eq, within};

const TIMEOUT: Duration = Duration::from_secs(60);

/// 75 MB in all.
const LARGE_RUNS: &str = "\
insert into flows_v3 (flow_id, ts_epoch) values ('F', 1);
insert into runs_v3 (flow_id, user_name, ts_epoch, tags, system_tags)
select 'F', 'u', i,
       (select jsonb_agg(repeat(md5(i || '-' || j), 16)) from generate_series(1, 50) j), '[]'
  from generate_series(1, 3000) i";

/// The clients of this test need more descriptors than some systems allow by default.
fn raise_open_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit can be read");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
}

async fn connections(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(TcpStream::connect(address).await.expect("it listens"));
    }
    streams
}

async fn closed(daemon: &Daemon, listener: &str, reason: &str) -> Option<f64> {
    let sample = format!(
        "status_indexer_http_connections_closed_total{{listener=\"{listener}\",reason=\"{reason}\"}}"
    );
    daemon.metric(&sample).await
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_clients_do_not_take_the_descriptors_of_the_indexer() {
    raise_open_files();
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let daemon = Launch::on(&database).open_files(200).start().await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let run = writer.insert_run("F", Some(now / 1000)).await;
    let listens = async || daemon.metric("status_indexer_listener_connected").await;
    eventually_eq(TIMEOUT, "it listens", Some(1.0), listens).await;

    let mut silent = connections(daemon.api().await, 250).await;
    silent.extend(connections(daemon.address().await, 250).await);
    eventually(TIMEOUT, "the process is alive", async || {
        matches!(daemon.get("/healthz").await, Some((200, _)))
    })
    .await;
    let terminated = "\
select pg_terminate_backend(pid)
  from pg_stat_activity
 where datname = current_database()
   and pid <> pg_backend_pid()
   and application_name = 'status-indexer'";
    let terminated = writer.client().query(terminated, &[]).await;
    assert!(!terminated.expect("a superuser may").is_empty());
    writer.attempt_ok("F", run, "True", now).await;
    eventually_status(&writer, "F", run, "completed").await;
    eventually(TIMEOUT, "it listens again", async || {
        let reconnects = daemon.metric("status_indexer_listener_reconnects_total");
        reconnects.await >= Some(1.0) && listens().await == Some(1.0)
    })
    .await;

    for stream in &mut silent {
        let mut byte = [0];
        let read = within(TIMEOUT, "a silent client is closed", stream.read(&mut byte));
        assert!(matches!(read.await, Ok(0) | Err(_)));
    }
    assert!(closed(&daemon, "api", "head_timeout").await > Some(0.0));
    assert!(closed(&daemon, "metrics", "connection_limit").await > Some(100.0));
    assert!(daemon.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_long_lists_take_little_memory_and_are_disconnected() {
    const STALLED: u8 = 20;
    let database = Database::fresh().await;
    let daemon = Launch::on(&database)
        .arg("--reader-write-timeout")
        .arg("10")
        .start()
        .await;
    let client = database.client().await;
    client.batch_execute(LARGE_RUNS).await.expect("valid SQL");
    let address = daemon.api().await;
    let url = format!("http://{address}/flows/F/runs");
    let http = reqwest::Client::builder().no_proxy().build();
    let http = http.expect("a plain client needs nothing");
    let list = async || {
        let answer = http.get(&url).send().await.expect("the API answers");
        answer.bytes().await.expect("the list is complete")
    };
    let alone = within(TIMEOUT, "a list is complete", list()).await;
    assert!(alone.len() > 75_000_000);

    let mut stalled = connections(address, STALLED.into()).await;
    for stream in &mut stalled {
        let request = b"GET /flows/F/runs HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.write_all(request).await.expect("the API reads");
    }
    for stream in &mut stalled {
        let mut start = [0; 12];
        let begun = stream.read_exact(&mut start);
        within(TIMEOUT, "a list has begun", begun)
            .await
            .expect("it begins");
    }
    let beside = within(TIMEOUT, "a list is complete", list()).await;
    assert!(alone == beside, "the lists differ");
    eventually_eq(
        TIMEOUT,
        "the stalled clients are disconnected",
        Some(f64::from(STALLED)),
        async || closed(&daemon, "api", "write_timeout").await,
    )
    .await;
    if let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())) {
        let peak = status.lines().find_map(|line| {
            let kib = line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?;
            kib.parse::<u64>().ok()
        });
        let peak = peak.expect("the kernel counts the peak") / 1024;
        println!("peak: {peak} MiB");
        assert!(peak < 100, "peak: {peak} MiB");
    }
    assert!(daemon.terminate().await.success());
}
