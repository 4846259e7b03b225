//! A process that the tests watch: its log, its exit, and whether the exit was expected.
//!
//! Owns the list of watched processes of each thread, which [`crate::wait`] checks while it polls.
//! Called by [`crate::daemon`], which starts the processes, and by everything that waits.

use std::cell::RefCell;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command as Shell, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::ChildStderr;
use tokio::sync::watch;

thread_local! {
    static WATCHED: RefCell<Vec<Weak<Process>>> = const { RefCell::new(Vec::new()) };
}

/// See the module.
pub(crate) struct Process {
    pid: u32,
    log: Mutex<Vec<Value>>,
    pub(crate) exited: watch::Receiver<Option<ExitStatus>>,
    /// Whether the test expects it to end.
    end_expected: Mutex<bool>,
}

impl Process {
    /// A process that every wait of this thread checks from now on.
    pub(crate) fn watched(pid: u32, exited: watch::Receiver<Option<ExitStatus>>) -> Arc<Self> {
        let process = Arc::new(Self {
            pid,
            log: Mutex::default(),
            exited,
            end_expected: Mutex::new(false),
        });
        WATCHED.with_borrow_mut(|watched| watched.push(Arc::downgrade(&process)));
        process
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The log so far.
    pub(crate) fn log(&self) -> MutexGuard<'_, Vec<Value>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn read(&self, log: ChildStderr) {
        let mut lines = BufReader::new(log).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let parsed = serde_json::from_str(&line).ok().filter(Value::is_object);
            self.log()
                .push(parsed.unwrap_or_else(|| json!({ "message": line })));
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if self.exited.borrow().is_none() {
            let pid = i32::try_from(self.pid).expect("process ids are small");
            // It may have ended a moment ago; the signal then has no effect.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    pub(crate) fn expect_end(&self) {
        *self
            .end_expected
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// The reason to fail the test, if the process has ended unexpectedly.
    pub(crate) fn unexpected_end(&self) -> Option<String> {
        let expected = *self
            .end_expected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
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

    /// Whether every thread of the process is stopped; true where the system cannot tell.
    pub(crate) fn is_stopped(&self) -> bool {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.pid)) else {
            return true;
        };
        threads.filter_map(Result::ok).all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            state.is_empty() || state.starts_with('T')
        })
    }
}

/// Fails the test if a daemon that it started has died by itself.
///
/// # Panics
/// If one has.
pub fn check_all() {
    let died = watched()
        .iter()
        .find_map(|process| process.unexpected_end());
    if let Some(text) = died {
        panic!("{text}");
    }
}

/// The last log lines of the test's daemons, for the text of a failure.
#[must_use]
pub fn tails() -> String {
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

/// Kills a process when the test's process dies before it, which closes the pipe.
///
/// # Panics
/// If `sh` cannot be started.
#[must_use]
pub fn watchdog(pid: u32) -> std::process::Child {
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
