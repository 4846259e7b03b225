//! The plug-in of `deploy/metadata-service`, in a process with the metadata service's structure.
//!
//! Owns the promises about when the column answers and when the service's own joins do. The host in
//! `tests/deploy/plugin` is ours and small; it stands for the service, with a real connection pool
//! on a real server.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio_postgres::Client;

use testkit::daemon::{Daemon, Launch};
use testkit::database::Database;
use testkit::proxy::Proxy;
use testkit::wait::{eventually, within};
use testkit::writer::Writer;

const TIMEOUT: Duration = Duration::from_secs(20);
const SERVICE: &str = "services.metadata_service.server";

/// The fingerprint of the host's joins, as the plug-in logs it.
const HOST_JOINS: &str = "7819b9ee";

pub(super) const ON: &str = "status filters read the view status_indexer.runs";
const OWN: &str = "status filters use the service's own joins: ";

/// How to start the host: `Service::on(&database).start().await`.
pub(super) struct Service {
    command: Command,
}

impl Service {
    /// With the plug-in in `PYTHONPATH` and a check every tenth of a second.
    pub(super) fn on(database: &Database) -> Self {
        Self::at(database.url())
    }

    fn at(dsn: &str) -> Self {
        let mut command = Command::new(python());
        command
            .args(["-u", "-m", SERVICE])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("PYTHONPATH", python_path(&[deployed(), host()]))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("DSN", dsn)
            .env("STATUS_INDEXER_PLUGIN_SECONDS", "0.1")
            .env("STATUS_INDEXER_PLUGIN_ACCEPT", HOST_JOINS);
        Self { command }
    }

    pub(super) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    fn path(self, directories: &[PathBuf]) -> Self {
        let path = python_path(directories);
        self.env("PYTHONPATH", &path)
    }

    /// As `python -m status_indexer_plugin`.
    fn by_command(mut self) -> Self {
        let mut command = Command::new(python());
        for (name, value) in self.command.as_std().get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        command.args(["-u", "-m", "status_indexer_plugin", SERVICE]);
        self.command = command;
        self
    }

    /// Starts it and waits until it answers.
    pub(super) async fn start(mut self) -> Running {
        let mut process = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("python was found before");
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let errors = process.stderr.take().expect("it was asked for");
        let writing = Arc::clone(&log);
        tokio::spawn(async move {
            let mut lines = BufReader::new(errors).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                lock(&writing).push(line);
            }
        });
        let mut running = Running {
            questions: process.stdin.take().expect("it was asked for"),
            answers: BufReader::new(process.stdout.take().expect("it was asked for")).lines(),
            log,
            _process: process,
        };
        let first = running.line().await;
        assert_eq!(first, json!({"serving": true}), "{:?}", running.log());
        running
    }
}

/// A running host. It ends with its input, so also when the test's process is killed.
pub(super) struct Running {
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    log: Arc<Mutex<Vec<String>>>,
    _process: Child,
}

/// An answer: the numbers of the runs, newest first, and whether it came from the joins.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    runs: Vec<i32>,
    joined: bool,
}

fn joins(runs: &[i32]) -> Answer {
    let runs = runs.to_vec();
    Answer { runs, joined: true }
}

fn view(runs: &[i32]) -> Answer {
    let runs = runs.to_vec();
    Answer {
        runs,
        joined: false,
    }
}

impl Running {
    async fn line(&mut self) -> Value {
        let line = within(TIMEOUT, "the service answers", self.answers.next_line()).await;
        let line = line.expect("its output can be read");
        let line = line.unwrap_or_else(|| panic!("the service ended: {:?}", self.log()));
        serde_json::from_str(&line).expect("it answers in JSON")
    }

    /// Its answer to a question.
    pub(super) async fn question(&mut self, question: &Value) -> Value {
        let question = format!("{question}\n");
        let written = self.questions.write_all(question.as_bytes()).await;
        written.expect("it reads its input");
        self.line().await
    }

    /// The flow's runs of a status. Always an answer, whatever happens to the database.
    async fn ask(&mut self, status: &str) -> Answer {
        let answer = self.question(&json!({"flow": "F", "status": status})).await;
        assert_eq!(answer["code"], 200, "{answer} {:?}", self.log());
        let runs = answer["body"].as_array().expect("a list").iter();
        let number = |run: &Value| {
            run["run_number"]
                .as_i64()
                .and_then(|n| i32::try_from(n).ok())
        };
        Answer {
            runs: runs.map(|run| number(run).expect("a number")).collect(),
            joined: answer["joined"].as_bool().expect("it says who answered"),
        }
    }

    fn log(&self) -> Vec<String> {
        lock(&self.log).clone()
    }

    /// The plug-in's log messages, without the logger's name.
    pub(super) fn said(&self) -> Vec<String> {
        let log = self.log();
        let ours = log.iter().filter_map(|line| {
            let (_, rest) = line.split_once(":status_indexer_plugin:")?;
            Some(rest.to_owned())
        });
        ours.collect()
    }

    /// Waits until one of its log messages contains this.
    pub(super) async fn eventually_said(&self, text: &str) {
        eventually(TIMEOUT, text, async || {
            self.said().iter().any(|line| line.contains(text))
        })
        .await;
    }

    /// Waits until this is its last log message.
    pub(super) async fn says(&self, text: &str) {
        let what = format!("it says {text}");
        let waited = tokio::time::timeout(
            TIMEOUT,
            eventually(2 * TIMEOUT, &what, async || {
                self.said().last().is_some_and(|last| last.contains(text))
            }),
        )
        .await;
        assert!(waited.is_ok(), "not {what}: {:#?}", self.log());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn deployed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/metadata-service")
}

fn host() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy/plugin")
}

fn python_path(directories: &[PathBuf]) -> String {
    let joined = std::env::join_paths(directories).expect("no colon in our paths");
    joined.into_string().expect("our paths are text")
}

/// A Python with the service's packages: the first in PATH, or the system's.
fn python() -> &'static str {
    static PYTHON: OnceLock<&str> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let able = |python: &&str| {
            let tried = std::process::Command::new(python)
                .args(["-c", "import aiopg, psycopg2"])
                .stderr(Stdio::null())
                .status();
            tried.is_ok_and(|status| status.success())
        };
        let found = ["python3", "/usr/bin/python3"].into_iter().find(able);
        found.expect("a python3 with aiopg and psycopg2 is installed: .ci/setup test does it")
    })
}

/// Two runs that failed and one that completed, far enough in the past to be settled.
async fn three_runs(writer: &Writer) -> [i32; 3] {
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let mut runs = [0; 3];
    for (run, value) in runs.iter_mut().zip(["False", "True", "False"]) {
        *run = writer.insert_run("F", Some(now / 1000)).await;
        writer.attempt_ok("F", *run, value, now).await;
    }
    runs
}

/// Three runs, an indexer, and a service that reads the view.
struct Site {
    database: Database,
    admin: Client,
    failed: [i32; 2],
    daemon: Daemon,
    service: Running,
}

impl Site {
    async fn start() -> Self {
        Self::with(|service| service).await
    }

    async fn with(change: impl FnOnce(Service) -> Service) -> Self {
        let database = Database::fresh().await;
        let [first, _, third] = three_runs(&database.writer().await).await;
        let daemon = Launch::on(&database).start().await;
        let service = change(Service::on(&database)).start().await;
        service.says(ON).await;
        let admin = database.client().await;
        Self {
            admin,
            database,
            failed: [third, first],
            daemon,
            service,
        }
    }

    async fn sql(&self, statements: &str) {
        let done = self.admin.batch_execute(statements).await;
        done.expect("the superuser may");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_joins_answer_until_the_column_is_valid_and_then_the_column() {
    let database = Database::fresh().await;
    let [first, second, third] = three_runs(&database.writer().await).await;
    let mut service = Service::on(&database).start().await;
    service.says("the indexer is not installed").await;
    assert_eq!(service.ask("failed").await, joins(&[third, first]));

    let migrated = Launch::on(&database)
        .args(&["migrate", "up"])
        .output()
        .await;
    assert!(migrated.status.success());
    service.says("the column is not valid").await;
    assert_eq!(service.ask("failed").await, joins(&[third, first]));

    let _daemon = Launch::on(&database).start().await;
    service.says(ON).await;
    assert_eq!(service.ask("failed").await, view(&[third, first]));
    assert_eq!(service.ask("completed").await, view(&[second]));
    assert_eq!(service.ask("running").await, view(&[]));
    // One line for each change, however many checks there were. A check between two steps of the
    // migration may log another reason.
    let said = service.said();
    let [absent, between @ .., unfinished, on] = said.as_slice() else {
        panic!("too few log lines: {said:?}");
    };
    assert!(absent.contains("the indexer is not installed"), "{said:?}");
    assert!(unfinished.contains("the column is not valid"), "{said:?}");
    assert_eq!(on, ON);
    let mut doubts = [absent, unfinished].into_iter().chain(between);
    assert!(doubts.all(|line| line.starts_with(OWN)), "{said:?}");
    assert!(said.windows(2).all(|two| two[0] != two[1]), "{said:?}");
}

/// A page in the form in which the service sends it, from the view.
fn page(statuses: &str) -> String {
    format!(
        "select * from (select status_indexer.runs.flow_id as flow_id, status_indexer.runs.run_number as run_number,
                               status_indexer.runs.ts_epoch as ts_epoch, status from status_indexer.runs ) t
          where \"flow_id\" = 'F' and ({statuses}) and (ts_epoch, run_number) < (29000, 29000)
          order by ts_epoch desc, run_number desc limit 51"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_reads_few_blocks_however_rare_its_statuses_are() {
    let site = Site::start().await;
    // Runs of the rare statuses are old.
    site.sql(
        "set session_replication_role = replica;
         insert into runs_v3 (flow_id, ts_epoch, tags, system_tags, run_status, last_heartbeat_ts)
         select 'F', n, '[]', '[\"user:u\", \"runtime:dev\", \"python_version:3.12\"]',
                case when n in (5, 700, 3000) then 'failed' else 'completed' end, n
           from generate_series(1, 30000) n;
         reset session_replication_role;",
    )
    .await;
    site.sql("vacuum analyze runs_v3").await;
    for statuses in [
        "\"status\" = 'completed'",
        "\"status\" = 'failed'",
        "\"status\" = 'running'",
        "\"status\" = 'failed' or \"status\" = 'running'",
        "\"status\" = 'failed' or \"status\" = 'running' or \"status\" = 'completed'",
        "\"status\" <> 'completed'",
    ] {
        let explain = format!("explain (analyze, buffers, format json) {}", page(statuses));
        let mut blocks = 0;
        let mut plan = Value::Null;
        for _ in 0..2 {
            let row = site.admin.query_one(&explain, &[]).await.expect("a plan");
            plan = row.get(0);
            let count = |name: &str| plan[0]["Plan"][name].as_i64().expect("buffers");
            blocks = count("Shared Hit Blocks") + count("Shared Read Blocks");
        }
        println!("{statuses}: {blocks} blocks");
        assert!(blocks < 150, "{statuses}: {blocks} blocks\n{plan:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_joins_answer_again_while_the_column_is_in_doubt() {
    let mut site = Site::start().await;
    let failed = site.failed;
    let doubts = [
        (
            "update status_indexer.state set valid_since = null",
            "update status_indexer.state set valid_since = now()",
            "the column is not valid",
        ),
        (
            "update status_indexer.state set cutoff_secs = 20",
            "update status_indexer.state set cutoff_secs = 360",
            "RUN_INACTIVE_CUTOFF_TIME is 360 for the service and 20 for the indexer",
        ),
        (
            "update status_indexer.state set definition_version = 2",
            "update status_indexer.state set definition_version = 1",
            "definition 2",
        ),
        (
            "update status_indexer.state set reads_version = 2",
            "update status_indexer.state set reads_version = 1",
            "the indexer's view has version 2, the plug-in supports version 1",
        ),
        (
            "alter view status_indexer.runs rename to runs_of_another_version",
            "alter view status_indexer.runs_of_another_version rename to runs",
            "the indexer's schema has no view status_indexer.runs: run `status-indexer migrate up`",
        ),
        (
            "update status_indexer.state set runs_table = 'public.flows_v3'",
            "update status_indexer.state set runs_table = 'public.runs_v3'",
            "a table other than runs_v3",
        ),
    ];
    // No daemon writes the state meanwhile.
    site.daemon.freeze().await;
    for (doubt, relief, text) in doubts {
        site.sql(doubt).await;
        site.service.says(text).await;
        assert_eq!(site.service.ask("failed").await, joins(&failed), "{doubt}");
        site.sql(relief).await;
        site.service.says(ON).await;
        assert_eq!(site.service.ask("failed").await, view(&failed), "{relief}");
    }
    site.daemon.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_running_daemon_the_view_is_exact_until_too_many_runs_wait() {
    let mut site = Site::start().await;
    site.daemon.kill9().await;
    let [third, first] = site.failed;
    let writer = site.database.writer().await;
    let later = writer.now_ms().await + 1000;
    writer.attempt("F", third, later).await;
    assert_eq!(site.service.ask("failed").await, view(&[first]));
    assert_eq!(site.service.ask("running").await, view(&[third]));
    // A run whose heartbeat stopped before it was inserted.
    let old = writer.now_secs().await - 361;
    let lost = writer.insert_run("F", Some(old)).await;
    assert_eq!(site.service.ask("failed").await, view(&[lost, first]));

    site.sql("insert into status_indexer.queue (flow_id, run_number) select 'G', i from generate_series(1, 1001) i")
        .await;
    site.service
        .says("check that `status-indexer run` is running")
        .await;
    // The joins of this host know no retry.
    assert_eq!(
        site.service.ask("failed").await,
        joins(&[lost, third, first])
    );

    let _daemon = Launch::on(&site.database).start().await;
    site.service.says(ON).await;
    assert_eq!(site.service.ask("failed").await, view(&[lost, first]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_was_just_written_is_in_the_next_answer() {
    let mut site = Site::start().await;
    let writer = site.database.writer().await;
    let mut failed: Vec<i32> = site.failed.to_vec();
    for _ in 0..60 {
        let now = writer.now_ms().await;
        let run = writer.insert_run("F", Some(now / 1000)).await;
        writer.attempt_ok("F", run, "False", now).await;
        failed.insert(0, run);
        let answer = site.service.ask("failed").await;
        assert_eq!(answer, view(&failed[..failed.len().min(51)]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_dropped_between_two_checks_costs_no_answer() {
    let mut site = Site::with(|service| service.env("STATUS_INDEXER_PLUGIN_SECONDS", "3600")).await;
    let failed = site.failed;
    assert_eq!(site.service.ask("failed").await, view(&failed));
    site.daemon.kill9().await;
    let removed = Launch::on(&site.database)
        .args(&["migrate", "down"])
        .output()
        .await;
    assert!(removed.status.success());
    assert_eq!(site.service.ask("failed").await, joins(&failed));
    assert_eq!(site.service.ask("completed").await.runs.len(), 1);
    let said = site.service.said();
    assert_eq!(
        said[1..],
        [format!("{OWN}the view is missing or not readable")]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_that_fail_disable_the_view_and_cost_no_answer() {
    let mut site = Site::start().await;
    let failed = site.failed;
    // The check reads this column, the view does not.
    let rename = "alter table status_indexer.state rename column reads_version to another";
    site.sql(rename).await;
    assert_eq!(site.service.ask("failed").await, view(&failed));
    site.service.says("the view cannot be checked").await;
    assert_eq!(site.service.ask("failed").await, joins(&failed));
    site.sql("alter table status_indexer.state rename column another to reads_version")
        .await;
    site.service.says(ON).await;
    assert_eq!(site.service.ask("failed").await, view(&failed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_the_privileges_keeps_its_joins() {
    let site = Site::start().await;
    site.sql(&format!(
        "create role {0} login; grant select on runs_v3, metadata_v3 to {0}",
        site.database.name()
    ))
    .await;
    let dsn = site
        .database
        .url()
        .replace("postgres@", &format!("{}@", site.database.name()));
    let mut service = Service::at(&dsn).start().await;
    service
        .says("the service's role needs usage on schema status_indexer")
        .await;
    assert_eq!(service.ask("failed").await, joins(&site.failed));
    // The grants of the README suffice.
    site.sql(&format!(
        "grant usage on schema status_indexer to {0}; grant select on status_indexer.state, status_indexer.read_state, status_indexer.runs to {0}",
        site.database.name()
    ))
    .await;
    service.says(ON).await;
    assert_eq!(service.ask("failed").await, view(&site.failed));
    drop(service);
    site.sql(&format!(
        "drop owned by {0}; drop role {0}",
        site.database.name()
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unresponsive_database_that_recovers_needs_no_restart() {
    let database = Database::fresh().await;
    let [first, _, third] = three_runs(&database.writer().await).await;
    let _daemon = Launch::on(&database).start().await;
    let proxy = Proxy::to(testkit::database::shared().await.address()).await;
    let mut service = Service::at(&database.url_through(proxy.address()))
        .start()
        .await;
    service.says(ON).await;
    proxy.cut();
    // The host does not retry; the plug-in's checks meet the broken connections first.
    eventually(TIMEOUT, "it has looked", async || {
        let looks = "select from pg_stat_activity where query like '-- plugin.state%' and datname = current_database()";
        let client = database.client().await;
        !client.query(looks, &[]).await.expect("an answer").is_empty()
    })
    .await;
    service.says(ON).await;
    assert_eq!(service.ask("failed").await, view(&[third, first]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_another_structure_is_not_changed() {
    let site = Site::start().await;
    let unknown = Service::on(&site.database).env("STATUS_INDEXER_PLUGIN_ACCEPT", "");
    let mut service = unknown.start().await;
    service
        .says(&format!(
            "inactive: the service's joins have the unknown fingerprint {HOST_JOINS}"
        ))
        .await;
    assert_eq!(service.ask("failed").await, joins(&site.failed));

    let old = Service::on(&site.database)
        .env("HOST_RELEASE", "old")
        .start()
        .await;
    old.says("inactive: this release of the service has no status filter with joins")
        .await;

    let off = Service::on(&site.database).env("STATUS_INDEXER_PLUGIN", "off");
    let mut service = off.start().await;
    assert_eq!(service.ask("failed").await, joins(&site.failed));
    assert_eq!(service.said(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_loads_by_path_or_command_and_hides_no_other_sitecustomize() {
    let site = Site::start().await;
    let others = tempfile::tempdir().expect("a directory");
    let greeting = "import sys; print('another was here', file=sys.stderr)";
    std::fs::write(others.path().join("sitecustomize.py"), greeting).expect("a file of ours");
    let others = others.path().to_owned();

    let path = [deployed(), others.clone(), host()];
    let service = Service::on(&site.database).path(&path).start().await;
    service.says(ON).await;
    assert!(service.log().iter().any(|line| line == "another was here"));

    // Where another sitecustomize comes first and does not continue the search, the command works.
    let path = [others, deployed(), host()];
    let mut service = Service::on(&site.database).path(&path).start().await;
    assert!(service.ask("failed").await.joined);
    assert_eq!(service.said(), [""; 0]);
    let mut service = Service::on(&site.database)
        .path(&path)
        .by_command()
        .start()
        .await;
    service.says(ON).await;
    assert_eq!(service.ask("failed").await, view(&site.failed));
}
