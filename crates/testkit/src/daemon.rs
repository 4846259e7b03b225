//! The product's binary as a process, watched by the test that starts it.
//!
//! Owns the process, its log and its end. Promises that a test fails at once, with the end of the
//! log, when a daemon dies unexpectedly: the waits in [`crate::wait`] check every daemon that the
//! test's thread has started, and dropping one that died by itself panics. A daemon never outlives
//! its test, not even when the test's process is killed. Called by every test of a running daemon.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::process::Command;
use tokio::sync::watch;

use crate::database::Database;
use crate::process::{Process, watchdog};
use crate::product;
use crate::wait::{eventually, eventually_some, within};

const TIMEOUT: Duration = Duration::from_secs(20);

/// How to start a daemon or a command:
/// `Launch::on(&database).arg("--cutoff").arg("5").start().await`.
#[derive(Debug, Clone)]
pub struct Launch {
    args: Vec<String>,
    env: HashMap<String, String>,
    open_files: Option<u32>,
}

impl Launch {
    /// `run --migrate` on the database, with metrics on a free port.
    #[must_use]
    pub fn on(database: &Database) -> Self {
        let args = ["run", "--migrate", "--metrics-listen", "127.0.0.1:0"];
        Self {
            args: args.map(str::to_owned).to_vec(),
            env: HashMap::new(),
            open_files: None,
        }
        .env("DATABASE_URL", database.url())
    }

    /// The same, through a proxy.
    #[must_use]
    pub fn through(database: &Database, proxy: SocketAddr) -> Self {
        Self::on(database).env("DATABASE_URL", &database.url_through(proxy))
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Replaces all arguments.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        self
    }

    /// A variable of its environment; the last value of a name wins.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The limit on the files that the process may open.
    #[must_use]
    pub fn open_files(mut self, limit: u32) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// The command; a daemon serves the read API on a free port unless the test sets another.
    fn command(&self) -> Command {
        let mut command = match self.open_files {
            Some(limit) => product::command_with_open_files(limit),
            None => product::command(),
        };
        let daemon = self.args.first().is_some_and(|arg| arg == "run");
        if daemon && !self.args.iter().any(|arg| arg == "--help") {
            command.env("STATUS_INDEXER_HTTP_LISTEN", "127.0.0.1:0");
        }
        command.args(&self.args).envs(&self.env);
        command
    }

    /// Starts the process and returns at once, before it listens.
    ///
    /// # Panics
    /// If the binary has not been built.
    #[must_use]
    pub fn spawn(self) -> Daemon {
        let mut command = self.command();
        command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().expect("the binary can be executed");
        let pid = child.id().expect("the process has not been reaped");
        let (exit, exited) = watch::channel(None);
        let process = Process::watched(pid, exited);
        let log = child.stderr.take().expect("the output is piped");
        let reading = Arc::clone(&process);
        tokio::spawn(async move {
            // The log first: it is complete when the exit is reported.
            reading.read(log).await;
            exit.send_replace(child.wait().await.ok());
        });
        Daemon {
            watchdog: watchdog(pid),
            process,
        }
    }

    /// Starts the process and waits until it is ready.
    pub async fn start(self) -> Daemon {
        let daemon = self.spawn();
        daemon.ready().await;
        daemon
    }

    /// Runs a command to its end and returns its output: for `migrate`, `explain` and the like.
    ///
    /// # Panics
    /// If it does not end, or the binary has not been built.
    pub async fn output(self) -> std::process::Output {
        let mut command = self.command();
        command.kill_on_drop(true);
        within(TIMEOUT * 3, "the command ends", command.output())
            .await
            .expect("the binary can be executed")
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// If it fails, besides the reasons of [`Self::output`].
    pub async fn succeed(self) {
        let output = self.output().await;
        assert!(output.status.success(), "{output:?}");
    }
}

/// A running daemon.
pub struct Daemon {
    process: Arc<Process>,
    watchdog: std::process::Child,
}

impl Daemon {
    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The address of its metrics, once it listens.
    pub async fn address(&self) -> SocketAddr {
        self.logged_address("metrics.addr").await
    }

    /// The address of the read API, once it listens.
    pub async fn api(&self) -> SocketAddr {
        self.logged_address("http.addr").await
    }

    async fn logged_address(&self, field: &str) -> SocketAddr {
        let line = self.logged(field, |line| line.get(field).is_some()).await;
        let text = line[field].as_str();
        let text = text.expect("the address is logged as text");
        text.parse().expect("the address can be parsed")
    }

    /// Status and body of a GET on the address of the metrics; none while it does not answer.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
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

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&self) {
        eventually(TIMEOUT, "the daemon is ready", async || {
            matches!(self.get("/readyz").await, Some((200, _)))
        })
        .await;
    }

    /// The value of a sample, by its name in `/metrics` with its labels; none if it is missing.
    pub async fn metric(&self, sample: &str) -> Option<f64> {
        let (_, body) = self.get("/metrics").await?;
        body.lines().find_map(|line| {
            line.strip_prefix(sample)?
                .strip_prefix(' ')?
                .trim()
                .parse()
                .ok()
        })
    }

    /// The log so far; a line that is not JSON appears under `message`.
    #[must_use]
    pub fn log(&self) -> Vec<Value> {
        self.process.log().clone()
    }

    /// Waits for a line in the log and returns it.
    pub async fn logged(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually_some(TIMEOUT, &format!("logged: {what}"), async || {
            self.process.log().iter().find(|line| wanted(line)).cloned()
        })
        .await
    }

    /// Stops the process (SIGSTOP): it keeps its connections and locks, and does nothing.
    pub async fn freeze(&self) {
        self.process.signal(Signal::SIGSTOP);
        // A thread on another processor continues until the signal reaches it.
        eventually(TIMEOUT, "all threads are stopped", async || {
            self.process.is_stopped()
        })
        .await;
    }

    /// Continues the process (SIGCONT).
    pub fn thaw(&self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// Kills the process (SIGKILL) and returns when it is dead.
    pub async fn kill9(&self) {
        self.end(Signal::SIGKILL).await;
    }

    /// Stops it with SIGTERM and returns its exit status.
    pub async fn terminate(&self) -> ExitStatus {
        self.end(Signal::SIGTERM).await
    }

    /// The same with SIGINT, as Ctrl-C sends it.
    pub async fn interrupt(&self) -> ExitStatus {
        self.end(Signal::SIGINT).await
    }

    /// Waits until the process ends by itself, which the test expects.
    ///
    /// # Panics
    /// If it does not end.
    pub async fn exit(&self) -> ExitStatus {
        self.process.expect_end();
        let mut exited = self.process.exited.clone();
        let text = "the daemon ends";
        let exited = within(TIMEOUT, text, exited.wait_for(Option::is_some)).await;
        exited
            .expect("the task that reaps the process reports its exit")
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
        let died = self.process.unexpected_end();
        self.process.expect_end();
        self.process.signal(Signal::SIGKILL);
        // No longer needed: the process is dead or dying.
        let _ = self.watchdog.kill().and_then(|()| self.watchdog.wait());
        if let Some(text) = died
            && !thread::panicking()
        {
            panic!("{text}");
        }
    }
}
