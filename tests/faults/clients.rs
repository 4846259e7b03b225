//! HTTP clients that are silent, that do not read, or that are too many: none of them harms the
//! indexer.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::api::access::{Curl, certificates};
use testkit::daemon::{Daemon, Launch};
use testkit::database::Database;
use testkit::drift::eventually_status;
use testkit::requirement::left_out;
use testkit::wait::{eventually, eventually_eq, within};
use testkit::writer::Writer;

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

/// How many silent connections a test opens: 10,000, if this machine allows as many.
fn ten_thousand() -> usize {
    const WANTED: u64 = 10_000;
    // The other tests of this process need some as well.
    const RESERVED: u64 = 3_000;
    raise_open_files();
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit can be read");
    let count = WANTED.min(limit.saturating_sub(RESERVED));
    if count < WANTED {
        left_out(&format!(
            "the hard limit on open files is {limit}: {count} silent connections instead of {WANTED}"
        ));
    }
    usize::try_from(count).expect("a small number")
}

/// Opens connections to an address, several at a time, and keeps those that the other side closes.
async fn many(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    const AT_ONCE: usize = 8;
    let mut opening = JoinSet::new();
    for part in 0..AT_ONCE {
        let size = (count + part) / AT_ONCE;
        opening.spawn(async move { connections(address, size).await });
    }
    opening.join_all().await.into_iter().flatten().collect()
}

/// Events that are written while the connections are open: each status follows.
async fn statuses_follow(writer: &Writer, runs: usize) {
    for _ in 0..runs {
        let now = writer.now_ms().await;
        let run = writer.insert_run("F", Some(now / 1000)).await;
        writer.attempt_ok("F", run, "True", now).await;
        eventually_status(writer, "F", run, "completed").await;
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn both_listeners_survive_ten_thousand_silent_connections() {
    let count = ten_thousand();
    let all = certificates(&["one"]).await;
    let path = |name: &str| all.path(name).display().to_string();
    let database = Database::fresh().await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    // One listener with TLS, whose handshakes the clients never begin, and one without.
    let daemon = Launch::on(&database)
        .env("STATUS_INDEXER_HTTP_TLS_CERT", &path("one.crt"))
        .env("STATUS_INDEXER_HTTP_TLS_KEY", &path("one.key"))
        .start()
        .await;
    let open_files = async || daemon.metric("process_open_fds").await.unwrap_or(0.0);
    statuses_follow(&writer, 1).await;
    let before = open_files().await;
    let probe = async || matches!(daemon.get("/healthz").await, Some((200, _)));
    let curl = Curl {
        addr: daemon.api().await,
        authority: Some(PathBuf::from(path("one-ca.crt"))),
    };
    let read = async || curl.code("/flows/F/runs?_limit=1", None).await == 200;

    for (listener, address) in [("api", curl.addr), ("metrics", daemon.address().await)] {
        let opening = within(TIMEOUT, "all are connected", many(address, count));
        let (silent, ()) = tokio::join!(opening, statuses_follow(&writer, 5));
        assert_eq!(silent.len(), count);
        statuses_follow(&writer, 5).await;
        eventually(TIMEOUT, "a probe is answered", probe).await;
        eventually(TIMEOUT, "a reader is answered", read).await;
        let replaced = closed(&daemon, listener, "connection_limit").await;
        println!("{listener}: {count} silent connections, {replaced:?} replaced by later ones");
        assert!(replaced > Some(1_000.0), "{replaced:?}");
        drop(silent);
        eventually(TIMEOUT, "the descriptors are free again", async || {
            // The connections to the database come and go.
            open_files().await <= before + 12.0
        })
        .await;
    }
    statuses_follow(&writer, 1).await;
    assert!(daemon.terminate().await.success());
}
