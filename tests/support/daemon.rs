//! The real binary as a process, under a test that watches it.
//!
//! Owns the process, its log and its end. Promises that a test fails at once, with the end of the
//! log, when a daemon dies that nobody told to: the waits in [`super::wait`] look at every daemon
//! that the test's thread has started, and dropping one that died by itself panics. A daemon never
//! outlives its test, not even one whose whole process was killed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command as Shell, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{ChildStderr, Command};
use tokio::sync::watch;

use super::database::Database;
use super::wait::{eventually, eventually_some, within};

const PROGRAM: &str = env!("CARGO_BIN_EXE_status-indexer");
const PATIENCE: Duration = Duration::from_secs(20);

/// Variables of the machine that would change what the binary does.
const FOREIGN: &[&str] = &["MF_METADATA_DB_", "DB_TABLE_NAME_", "STATUS_INDEXER_", "PG"];
const FOREIGN_NAMES: &[&str] = &[
    "DATABASE_URL",
    "DB_SCHEMA_NAME",
    "RUN_INACTIVE_CUTOFF_TIME",
    "USE_SEPARATE_READER_POOL",
    "PATH_PREFIX",
    "RUST_LOG",
];

thread_local! {
    static WATCHED: RefCell<Vec<Weak<Process>>> = const { RefCell::new(Vec::new()) };
}

/// How to start a daemon: `Launch::on(&database).arg("--cutoff").arg("5").start().await`.
pub(crate) struct Launch {
    args: Vec<String>,
    env: HashMap<String, String>,
}

impl Launch {
    /// `run --migrate` against the database, metrics on a port of its own.
    pub(crate) fn on(database: &Database) -> Self {
        let args = ["run", "--migrate", "--metrics-listen", "127.0.0.1:0"];
        Self {
            args: args.map(str::to_owned).to_vec(),
            env: HashMap::new(),
        }
        .env("DATABASE_URL", database.url())
    }

    /// The same, through a proxy.
    pub(crate) fn through(database: &Database, proxy: SocketAddr) -> Self {
        Self::on(database).env("DATABASE_URL", &database.url_through(proxy))
    }

    /// One more argument.
    pub(crate) fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// These arguments and no others.
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        self
    }

    /// A variable of its environment; the last value of a name wins.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Daemons have readers' ports of their own, whatever arguments the test gives them.
    fn command(&self) -> Command {
        let mut command = program();
        let daemon = self.args.first().is_some_and(|arg| arg == "run");
        if daemon && !self.args.iter().any(|arg| arg == "--help") {
            command.env("STATUS_INDEXER_HTTP_LISTEN", "127.0.0.1:0");
        }
        command.args(&self.args).envs(&self.env);
        command
    }

    /// Starts the process and returns at once: it may not even listen yet.
    pub(crate) fn spawn(self) -> Daemon {
        let mut command = self.command();
        command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command
            .spawn()
            .expect("the binary was built with the tests");
        let pid = child.id().expect("it was not waited for yet");
        let (exit, exited) = watch::channel(None);
        let process = Arc::new(Process {
            pid,
            log: Mutex::default(),
            exited,
            expected: Mutex::new(false),
        });
        let log = child.stderr.take().expect("it was asked for");
        let reading = Arc::clone(&process);
        tokio::spawn(async move {
            // The log first: whoever sees the exit finds all of it.
            reading.read(log).await;
            exit.send_replace(child.wait().await.ok());
        });
        WATCHED.with_borrow_mut(|watched| watched.push(Arc::downgrade(&process)));
        Daemon {
            watchdog: watchdog(pid),
            process,
        }
    }

    /// Starts the process and waits until it answers that it is ready.
    pub(crate) async fn start(self) -> Daemon {
        let daemon = self.spawn();
        daemon.ready().await;
        daemon
    }

    /// Runs a command to its end and returns what it said: for `migrate`, `explain` and the like.
    pub(crate) async fn output(self) -> std::process::Output {
        let mut command = self.command();
        command.kill_on_drop(true);
        within(PATIENCE * 3, "the command ends", command.output())
            .await
            .expect("the binary was built with the tests")
    }
}

/// A daemon that runs.
pub(crate) struct Daemon {
    process: Arc<Process>,
    watchdog: std::process::Child,
}

struct Process {
    pid: u32,
    log: Mutex<Vec<Value>>,
    exited: watch::Receiver<Option<ExitStatus>>,
    /// Whether the test has told it to end.
    expected: Mutex<bool>,
}

impl Daemon {
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid
    }

    /// The address of its metrics, once it listens.
    pub(crate) async fn address(&self) -> SocketAddr {
        self.told_address("metrics.addr").await
    }

    /// The address of the read API, once it listens.
    pub(crate) async fn api(&self) -> SocketAddr {
        self.told_address("http.addr").await
    }

    async fn told_address(&self, field: &str) -> SocketAddr {
        let line = self.logged(field, |line| line.get(field).is_some()).await;
        let text = line[field].as_str();
        let text = text.expect("the address is logged as text");
        text.parse().expect("the address is one")
    }

    /// Status and body of a GET on the metrics' address; none while it does not answer.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        let url = format!("http://{}{path}", self.address().await);
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(5))
            .build();
        let answer = client
            .expect("a plain client needs nothing")
            .get(url)
            .send()
            .await
            .ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    /// Waits until `/readyz` says 200.
    pub(crate) async fn ready(&self) {
        eventually(PATIENCE, "the daemon is ready", async || {
            matches!(self.get("/readyz").await, Some((200, _)))
        })
        .await;
    }

    /// The value of a sample, named as `/metrics` shows it, labels included; none when it is not there.
    pub(crate) async fn metric(&self, sample: &str) -> Option<f64> {
        let (_, body) = self.get("/metrics").await?;
        body.lines().find_map(|line| {
            line.strip_prefix(sample)?
                .strip_prefix(' ')?
                .trim()
                .parse()
                .ok()
        })
    }

    /// The log so far; a line that is no JSON stands under `message`.
    pub(crate) fn log(&self) -> Vec<Value> {
        self.process.log().clone()
    }

    /// Waits for a line in the log and returns it.
    pub(crate) async fn logged(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually_some(PATIENCE, &format!("logged: {what}"), async || {
            self.process.log().iter().find(|line| wanted(line)).cloned()
        })
        .await
    }

    /// Stops it in its tracks: it lives, holds what it holds, and does nothing.
    pub(crate) async fn freeze(&self) {
        self.process.signal(Signal::SIGSTOP);
        // A thread that runs on another processor goes on until it hears of it.
        eventually(PATIENCE, "all threads stand still", async || {
            stands_still(self.process.pid)
        })
        .await;
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// Kills it without any warning and returns when it is dead.
    pub(crate) async fn kill9(&self) {
        self.end(Signal::SIGKILL).await;
    }

    /// Asks it to end and returns how it did.
    pub(crate) async fn terminate(&self) -> ExitStatus {
        self.end(Signal::SIGTERM).await
    }

    /// The same with SIGINT, as Ctrl-C sends it.
    pub(crate) async fn interrupt(&self) -> ExitStatus {
        self.end(Signal::SIGINT).await
    }

    /// Waits for it to end by itself: the test expects it to.
    pub(crate) async fn exit(&self) -> ExitStatus {
        self.process.expect_end();
        let mut exited = self.process.exited.clone();
        let text = "the daemon ends";
        let exited = within(PATIENCE, text, exited.wait_for(Option::is_some)).await;
        exited
            .expect("the task that waits for it reports")
            .expect("it has ended")
    }

    async fn end(&self, signal: Signal) -> ExitStatus {
        self.process.expect_end();
        self.process.signal(signal);
        self.exit().await
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let died = self.process.obituary();
        self.process.expect_end();
        self.process.signal(Signal::SIGKILL);
        // Its work is done: the process is dead or dying.
        let _ = self.watchdog.kill().and_then(|()| self.watchdog.wait());
        if let Some(obituary) = died
            && !thread::panicking()
        {
            panic!("{obituary}");
        }
    }
}

impl Process {
    fn log(&self) -> MutexGuard<'_, Vec<Value>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, log: ChildStderr) {
        let mut lines = BufReader::new(log).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let parsed = serde_json::from_str(&line).ok().filter(Value::is_object);
            self.log()
                .push(parsed.unwrap_or_else(|| json!({ "message": line })));
        }
    }

    fn signal(&self, signal: Signal) {
        if self.exited.borrow().is_none() {
            let pid = i32::try_from(self.pid).expect("process ids are small");
            // It may have ended a moment ago, which is no failure of the signal.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    fn expect_end(&self) {
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// What to say when it has ended and nobody told it to.
    fn obituary(&self) -> Option<String> {
        let expected = *self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        let status = (*self.exited.borrow()).filter(|_| !expected)?;
        let signal = status
            .signal()
            .map(|signal| format!(", signal {signal}"))
            .unwrap_or_default();
        Some(format!(
            "the daemon died under the test ({status}{signal})\n{}",
            self.tail()
        ))
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<String> = log[log.len().saturating_sub(30)..]
            .iter()
            .map(Value::to_string)
            .collect();
        format!("--- log of daemon {}\n{}", self.pid, lines.join("\n"))
    }
}

/// Fails the test when a daemon that it started has died by itself.
pub(crate) fn check_all() {
    let died = watched().iter().find_map(|process| process.obituary());
    if let Some(obituary) = died {
        panic!("{obituary}");
    }
}

/// The ends of the logs of the test's daemons, for a failure's text.
pub(crate) fn tails() -> String {
    watched()
        .iter()
        .map(|process| process.tail())
        .collect::<Vec<_>>()
        .join("\n")
}

fn watched() -> Vec<Arc<Process>> {
    WATCHED.with_borrow_mut(|watched| {
        watched.retain(|process| process.strong_count() > 0);
        watched.iter().filter_map(Weak::upgrade).collect()
    })
}

/// Whether every thread of the process is stopped, where the system tells.
fn stands_still(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return true;
    };
    threads.filter_map(Result::ok).all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        state.is_empty() || state.starts_with('T')
    })
}

/// The binary, in an environment without anything that would set it up.
fn program() -> Command {
    let mut command = Command::new(PROGRAM);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if FOREIGN.iter().any(|start| text.starts_with(start))
            || FOREIGN_NAMES.iter().any(|known| text == *known)
        {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Kills a process when the test's process dies before it: the pipe closes then.
pub(crate) fn watchdog(pid: u32) -> std::process::Child {
    Shell::new("sh")
        .args([
            "-c",
            r#"trap "" HUP INT TERM; read -r _; kill -s KILL "$1""#,
            "watchdog",
            &pid.to_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("every system has sh")
}
