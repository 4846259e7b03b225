//! A full disk on the server: a tablespace, where statements fail, and the directory of the WAL, where the
//! server stops. Real file systems of a few megabytes.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use super::{leads, run};
use testkit::daemon::Launch;
use testkit::database::{Database, UPSTREAM, connect};
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::postgres::{Options, Postgres};
use testkit::requirement::left_out;
use testkit::wait::eventually;
use testkit::writer::Writer;

const TIMEOUT: Duration = Duration::from_secs(120);

/// A file system of its own, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one in a new directory that belongs to the account of the server; none where this machine
    /// does not allow that, which is reported.
    fn mount(server: &Postgres, megabytes: u32) -> Option<Self> {
        let path = server.directory().join(format!("disk{megabytes}"));
        fs::create_dir(&path).expect("the directory of the server is writable");
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(&path)
            .output();
        if !mounted.as_ref().is_ok_and(|output| output.status.success()) {
            left_out(&format!("needs root and the right to mount: {mounted:?}"));
            return None;
        }
        let owner = fs::metadata(server.directory()).expect("it exists");
        chown(&path, Some(owner.uid()), Some(owner.gid())).expect("we are root");
        Some(Self(path))
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Writes until nothing fits.
    fn fill(&self) {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(self.filler())
            .expect("the disk is mounted");
        for size in [1 << 20, 1 << 12, 1] {
            let zeros = vec![0_u8; size];
            while file.write_all(&zeros).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.filler()).expect("the filler exists");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, because the server may still use it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Completes a run on a server that works.
async fn complete_a_run(writer: &Writer) {
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let id = writer.insert_run("F", Some(now / 1000)).await;
    writer.attempt_ok("F", id, "True", now).await;
    eventually_status(writer, "F", id, "completed").await;
}

/// Inserts evidence, which the server may refuse.
async fn try_attempt_ok(writer: &Writer, number: i32) -> Result<(), tokio_postgres::Error> {
    let statement = format!(
        "insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type,
                                  user_name, ts_epoch, tags, system_tags)
         values ('F', {number}, 'end', 1, 'attempt_ok', 'True', 'attempt_ok', 'u', {number}, '[]', '[]')"
    );
    writer.client().batch_execute(&statement).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_tablespace_fails_statements_and_loses_no_status() {
    const NO_SPACE: &str = "status_indexer_db_errors_total{sqlstate=\"53100\"}";
    let server = Postgres::start(Options::default())
        .await
        .expect("a server of our own");
    let Some(disk) = SmallDisk::mount(&server, 64) else {
        return;
    };
    let database = Database::on(&server).await;
    let admin = connect(&server.config("postgres")).await;
    let path = disk.0.display();
    run(
        &admin,
        &format!("create tablespace small location '{path}'"),
    )
    .await;
    let create = "create database small template template0 tablespace small";
    run(&admin, create).await;
    let writer = Writer::new(connect(&server.config("small")).await);
    run(writer.client(), UPSTREAM).await;
    let daemon = Launch::on(&database)
        .env("DATABASE_URL", &server.url("small"))
        .env("RUN_INACTIVE_CUTOFF_TIME", "15")
        .env("STATUS_INDEXER_RECONCILE_INTERVAL", "1")
        .env("STATUS_INDEXER_RECONCILE_RATE", "100000")
        .start()
        .await;
    eventually(TIMEOUT, "it leads", async || leads(&daemon).await).await;
    complete_a_run(&writer).await;
    let now = writer.now_secs().await;
    let insert = format!(
        "insert into runs_v3 (flow_id, user_name, ts_epoch, tags, system_tags, last_heartbeat_ts)
         select 'F', 'u', n, '[]', '[]', {now} from generate_series(1, 5000) n"
    );
    run(writer.client(), &insert).await;
    disk.fill();

    let refused = writer.client().batch_execute(&insert).await;
    let code = refused.expect_err("the disk is full").code().cloned();
    assert_eq!(code, Some(SqlState::DISK_FULL));
    let mut written = 0;
    for number in 2..=200 {
        written += u32::from(try_attempt_ok(&writer, number).await.is_ok());
    }
    println!("{written} of 199 writers found a page");
    // The deadlines pass, and 5,000 statuses have to be written.
    eventually(TIMEOUT, "the daemon has no space", async || {
        daemon
            .metric(NO_SPACE)
            .await
            .is_some_and(|count| count > 0.0)
    })
    .await;
    eventually(TIMEOUT, "it reports that", async || {
        let ready = daemon.get("/readyz").await;
        ready.is_some_and(|(code, text)| code == 503 && text.contains("No space left on device"))
    })
    .await;

    disk.free();
    complete_a_run(&writer).await;
    eventually_no_drift(writer.client()).await;
    daemon.ready().await;
    assert!(daemon.terminate().await.success());
    drop(disk);
    server.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_because_its_wal_has_no_space_loses_no_status() {
    let server = Postgres::start(
        Options::default()
            .set("max_wal_size", "32MB")
            .set("min_wal_size", "32MB"),
    )
    .await
    .expect("a server of our own");
    let Some(disk) = SmallDisk::mount(&server, 96) else {
        return;
    };
    server.shut_down().await.expect("it stops");
    move_wal(&server, &disk);
    server.start_again().await.expect("it starts");
    let database = Database::on(&server).await;
    let writer = database.writer().await;
    let daemon = Launch::on(&database)
        .env("RUN_INACTIVE_CUTOFF_TIME", "3600")
        .start()
        .await;
    eventually(TIMEOUT, "it leads", async || leads(&daemon).await).await;
    complete_a_run(&writer).await;
    for _ in 0..200 {
        let now = writer.now_secs().await;
        writer.insert_run("F", Some(now)).await;
    }
    run(writer.client(), "create table filler (t text)").await;

    disk.fill();
    let mut number = 1;
    eventually(TIMEOUT, "the server stops", async || {
        number = 2 + (number - 1) % 200;
        let _ = try_attempt_ok(&writer, number).await;
        let filling = "insert into filler select repeat('x', 1000) from generate_series(1, 5000)";
        writer.client().batch_execute(filling).await.is_err() && writer.client().is_closed()
    })
    .await;
    let log = server.log_tail(400);
    assert!(
        log.contains("PANIC") && log.contains("No space left on device"),
        "{log}"
    );
    eventually(TIMEOUT, "the daemon reports it", async || {
        matches!(daemon.get("/readyz").await, Some((503, _)))
    })
    .await;

    disk.free();
    eventually(TIMEOUT, "the server is back", async || {
        if server.pid().is_none() {
            // Its recovery found no space either.
            return server.start_again().await.is_ok();
        }
        database.config().connect(NoTls).await.is_ok()
    })
    .await;
    let writer = database.writer().await;
    daemon.ready().await;
    complete_a_run(&writer).await;
    eventually_no_drift(writer.client()).await;
    assert!(daemon.terminate().await.success());
    drop(disk);
    server.stop().await.expect("it stops");
}

/// Moves the directory of the WAL of a stopped server.
fn move_wal(server: &Postgres, disk: &SmallDisk) {
    let (wal, moved) = (server.directory().join("data/pg_wal"), disk.0.join("wal"));
    let copied = Command::new("cp")
        .arg("-a")
        .args([&wal, &moved])
        .status()
        .expect("cp exists");
    assert!(copied.success());
    fs::remove_dir_all(&wal).expect("it was copied");
    symlink(&moved, &wal).expect("the directory is ours");
}
