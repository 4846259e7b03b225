//! Time that changes abruptly: heartbeats, the cutoff, and the clock of the database.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use testkit::postgres::{Options, Postgres};

use super::run;
use testkit::daemon::Launch;
use testkit::database::{Database, connect, shared};
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::requirement::left_out;
use testkit::wait::eventually;

const TIMEOUT: Duration = Duration::from_secs(30);

const FIVE_HOURS: i64 = 5 * 3600;

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_that_move_out_of_range_and_back_are_followed() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let _daemon = Launch::on(&database)
        .env("STATUS_INDEXER_SWEEP_INTERVAL", "1")
        .start()
        .await;
    writer.insert_flow("F").await;
    let now = writer.now_secs().await;
    let set = |id: i32, value: &str| {
        format!("update runs_v3 set last_heartbeat_ts = {value} where run_number = {id}")
    };
    let fresh = now.to_string();
    let out_of_range = [
        (now + FIVE_HOURS).to_string(),
        (now - FIVE_HOURS).to_string(),
        "null".to_owned(),
        i64::MAX.to_string(),
        i64::MIN.to_string(),
    ];
    let mut ids = Vec::new();
    for _ in &out_of_range {
        ids.push(writer.insert_run("F", Some(now)).await);
    }
    // Out of range while running, for all of them at once: no trigger fires, the sweeper finds
    // them.
    for (id, value) in ids.iter().zip(&out_of_range) {
        run(writer.client(), &set(*id, value)).await;
    }
    for id in &ids {
        eventually_status(&writer, "F", *id, "failed").await;
    }
    eventually_no_drift(writer.client()).await;
    for id in &ids {
        run(writer.client(), &set(*id, &fresh)).await;
        eventually_status(&writer, "F", *id, "running").await;
    }
    eventually_no_drift(writer.client()).await;
    // From out of range on one side to the other side, and back into range.
    run(writer.client(), &set(ids[0], "-1")).await;
    eventually_status(&writer, "F", ids[0], "failed").await;
    for value in &out_of_range {
        run(writer.client(), &set(ids[0], value)).await;
        eventually_no_drift(writer.client()).await;
    }
    let ahead = (now + 100).to_string();
    run(writer.client(), &set(ids[0], &ahead)).await;
    eventually_status(&writer, "F", ids[0], "running").await;
    // The same as first heartbeats.
    for (value, status) in [
        (Some(now + FIVE_HOURS), "failed"),
        (Some(now - FIVE_HOURS), "failed"),
        (Some(i64::MAX), "failed"),
        (Some(i64::MIN), "failed"),
        (None, "failed"),
        (Some(now + 300), "running"),
    ] {
        let id = writer.insert_run("F", value).await;
        eventually_status(&writer, "F", id, status).await;
    }
    eventually_no_drift(writer.client()).await;
    let armed: i64 = writer
        .client()
        .query_one("select count(*) from status_indexer.timers", &[])
        .await
        .expect("the timers are there")
        .get(0);
    assert_eq!(armed, 2, "timers for heartbeats ahead of the clock only");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_cutoff_applies_to_every_run_after_a_restart() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let daemon = Launch::on(&database).start().await;
    let now = writer.now_secs().await;
    let old = writer.insert_run("F", Some(now - 1000)).await;
    let silent = writer.insert_run("F", Some(now - 100)).await;
    let ahead = writer.insert_run("F", Some(now + 100)).await;
    let fresh = writer.insert_run("F", Some(now)).await;
    let done = writer.insert_run("F", Some(now - 100)).await;
    writer.attempt_ok("F", done, "True", now * 1000).await;
    eventually_no_drift(writer.client()).await;
    assert!(daemon.terminate().await.success());

    for (cutoff, expected) in [
        (
            "360",
            ["failed", "running", "running", "running", "completed"],
        ),
        ("50", ["failed", "failed", "failed", "running", "completed"]),
        (
            "5000",
            ["running", "running", "running", "running", "completed"],
        ),
        (
            "360",
            ["failed", "running", "running", "running", "completed"],
        ),
    ] {
        let daemon = Launch::on(&database)
            .env("RUN_INACTIVE_CUTOFF_TIME", cutoff)
            .start()
            .await;
        for (id, status) in [old, silent, ahead, fresh, done].into_iter().zip(expected) {
            eventually_status(&writer, "F", id, status).await;
        }
        eventually_no_drift(writer.client()).await;
        daemon.ready().await;
        assert!(daemon.terminate().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_without_an_event_are_kept_under_a_short_cutoff() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let _daemon = Launch::on(&database).arg("--cutoff").arg("8").start().await;
    writer.insert_flow("F").await;
    let now = writer.now_secs().await;
    // Treated as fresh, so that no trigger enqueues an event.
    let id = writer.insert_run("F", Some(now - 4)).await;
    #[expect(clippy::cast_precision_loss, reason = "seconds of this century")]
    let deadline = (now - 4 + 8) as f64;
    eventually_status(&writer, "F", id, "failed").await;
    let late = writer.now().await - deadline;
    println!("{late:.3} s after the deadline");
    assert!(late < 4.0, "{late:.3} s after the deadline");
}

/// A server whose clock is the machine's plus the offset in a file.
struct SteppedClock {
    server: Postgres,
    directory: TempDir,
}

impl SteppedClock {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path();
        open(path, 0o755);
        let offset = path.join("offset");
        write(&offset, "+0", 0o644);
        let real = programs().await;
        let library = library();
        let preload = format!(
            "#!/bin/sh
LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1
export LD_PRELOAD FAKETIME_TIMESTAMP_FILE FAKETIME_NO_CACHE FAKETIME_DONT_FAKE_MONOTONIC
exec {}/postgres \"$@\"
",
            library.display(),
            offset.display(),
            real.display(),
        );
        write(&path.join("postgres"), &preload, 0o755);
        let plain = format!("#!/bin/sh\nexec {}/initdb \"$@\"\n", real.display());
        write(&path.join("initdb"), &plain, 0o755);
        let options = Options {
            programs: Some(path.to_owned()),
            ..Options::default()
        };
        let server = Postgres::start(options).await.expect("a server of our own");
        Self { server, directory }
    }

    /// Sets the offset of its clock, in seconds.
    async fn step(&self, secs: i64) {
        let offset = self.directory.path().join("offset");
        let other = self.directory.path().join("next");
        write(&other, &format!("{secs:+}"), 0o644);
        // Atomically, because all of its processes read the file.
        std::fs::rename(other, offset).expect("both are in one directory");
        let client = connect(&self.server.config("postgres")).await;
        eventually(TIMEOUT, "the server's clock has stepped", async || {
            let row = client
                .query_one("select extract(epoch from clock_timestamp())::bigint", &[])
                .await
                .expect("the database returns the time");
            let machine = std::time::UNIX_EPOCH.elapsed().expect("it is after 1970");
            let machine = i64::try_from(machine.as_secs()).expect("seconds of this century");
            (row.get::<_, i64>(0) - machine - secs).abs() <= 2
        })
        .await;
    }
}

/// Where the server's real programs are.
async fn programs() -> PathBuf {
    let client = connect(&shared().await.config("postgres")).await;
    let row = client
        .query_one("select setting from pg_config where name = 'BINDIR'", &[])
        .await
        .expect("a server knows where it came from");
    PathBuf::from(row.get::<_, &str>(0))
}

/// The library that changes the time, as the package `faketime` installs it.
pub(crate) fn library() -> PathBuf {
    let name = "faketime/libfaketime.so.1";
    let parents = ["/usr/lib", "/usr/lib64", "/usr/local/lib"];
    let tuples = std::fs::read_dir("/usr/lib").into_iter().flatten();
    parents
        .iter()
        .map(PathBuf::from)
        .chain(tuples.filter_map(Result::ok).map(|entry| entry.path()))
        .map(|parent| parent.join(name))
        .find(|path| path.exists())
        .expect("tests need libfaketime: run .ci/setup test")
}

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).expect("a directory of our own");
    open(path, mode);
}

/// The server may run as another user.
fn open(path: &Path, mode: u32) {
    let permissions = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(path, permissions).expect("it is ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_status_follows_a_step_of_the_databases_clock() {
    if !cfg!(target_os = "linux") {
        left_out("only Linux lets a library be put under a program that does not ask for it");
        return;
    }
    let stepped = SteppedClock::start().await;
    let database = Database::on(&stepped.server).await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let daemon = Launch::on(&database).start().await;
    let now = writer.now_secs().await;
    let fresh = writer.insert_run("F", Some(now)).await;
    let ahead = writer.insert_run("F", Some(now + 5000)).await;
    let silent = writer.insert_run("F", None).await;
    let done = writer.insert_run("F", Some(now)).await;
    writer.attempt_ok("F", done, "True", now * 1000).await;

    for (offset, expected) in [
        (0, ["running", "failed", "failed", "completed"]),
        (5000, ["failed", "running", "failed", "completed"]),
        (0, ["running", "failed", "failed", "completed"]),
        (-5000, ["failed", "failed", "failed", "completed"]),
        (5000, ["failed", "running", "failed", "completed"]),
        (100, ["running", "failed", "failed", "completed"]),
    ] {
        stepped.step(offset).await;
        for (id, status) in [fresh, ahead, silent, done].into_iter().zip(expected) {
            eventually_status(&writer, "F", id, status).await;
        }
        eventually_no_drift(writer.client()).await;
    }
    daemon
        .logged("the step", |line| {
            line["message"].to_string().contains("clock stepped")
        })
        .await;
    // Events are processed as before.
    let now = writer.now_ms().await;
    writer.attempt_ok("F", fresh, "False", now).await;
    eventually_status(&writer, "F", fresh, "failed").await;
    daemon.ready().await;
    assert!(daemon.terminate().await.success());
    stepped.server.stop().await.expect("it stops");
}
