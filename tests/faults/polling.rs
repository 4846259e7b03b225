//! Without a LISTEN session the indexer is slower, but it works: some daemon leads by polling.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::daemon::Launch;
use testkit::database::{Database, shared};
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::proxy::Proxy;
use testkit::wait::{eventually, eventually_some};

use super::{command, leads, named};

const TIMEOUT: Duration = Duration::from_secs(120);

/// Continues a process when dropped, so that no server process stays stopped after a failure.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: i32) -> Self {
        let pid = Pid::from_raw(pid);
        kill(pid, Signal::SIGSTOP).expect("the test may signal its server");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_process_that_holds_the_lock_stops_nobody() {
    const HOLDER: &str = "\
select pid
  from pg_locks
 where locktype = 'advisory'
   and database = (select oid from pg_database where datname = current_database())
   and granted";
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let first = named(&database, "first").start().await;
    eventually(TIMEOUT, "the first leads", async || leads(&first).await).await;
    let second = named(&database, "second").start().await;
    let holder = eventually_some(TIMEOUT, "a holder", async || {
        let row = writer.client().query_opt(HOLDER, &[]).await.ok()??;
        Some(row.get::<_, i32>(0))
    })
    .await;

    let stopped = Stopped::new(holder);
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let run = writer.insert_run("F", Some(now / 1000)).await;
    writer.attempt_ok("F", run, "True", now).await;
    // Either daemon may lead: the pools of both work.
    eventually(TIMEOUT, "somebody leads", async || {
        leads(&first).await || leads(&second).await
    })
    .await;
    eventually_status(&writer, "F", run, "completed").await;

    drop(stopped);
    eventually_no_drift(writer.client()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_has_a_leader() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    command(&database, "migrate up").await;
    let proxy = Proxy::to(shared().await.address()).await;
    proxy.delay(Duration::from_millis(900));
    let daemon = Launch::through(&database, proxy.address())
        .args(&["run", "--metrics-listen", "127.0.0.1:0"])
        .spawn();
    eventually(TIMEOUT, "it leads", async || leads(&daemon).await).await;
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let run = writer.insert_run("F", Some(now / 1000)).await;
    writer.attempt_ok("F", run, "True", now).await;
    eventually_status(&writer, "F", run, "completed").await;
}
