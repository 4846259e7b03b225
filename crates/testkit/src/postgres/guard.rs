//! The shell process that is the server's parent, and the communication with it.
//!
//! Owns the pipe whose closing makes the guard clean up: the kernel closes it when this process
//! ends, for any reason, and no child inherits it. Promises that a command is answered or fails at
//! a deadline. A plain thread reads the answers, so that the guard belongs to no runtime. Called by
//! [`super::Postgres`].

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::watch;
use tokio::time::timeout;

use super::home::Home;

const SCRIPT: &str = include_str!("guard.sh");

/// The guard's last message about the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// No message yet.
    None,
    /// The data directory is ready to start from.
    Initialized,
    /// The postmaster was forked, with this process id.
    Started(u32),
    /// The server, or the attempt to create one, has ended.
    Exited,
    /// The guard itself has ended, and the directory with it.
    Gone,
}

/// A running guard. Dropping it closes the pipe.
#[derive(Debug)]
pub(super) struct Guard {
    commands: Mutex<Option<ChildStdin>>,
    events: watch::Receiver<Event>,
}

impl Guard {
    /// Starts the guard of an empty home.
    pub(super) fn start(programs: &Path, home: &Home) -> Result<Self> {
        let mut command = Command::new("sh");
        command
            .args(["-c", SCRIPT, "status-indexer-guard"])
            .args([home.path(), programs])
            // Messages in English, whatever the locale: some are recognized.
            .env("LC_ALL", "C")
            .current_dir(home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0);
        if let Some(account) = home.account() {
            command.uid(account.uid).gid(account.gid);
        }
        let mut guard = command.spawn().context("cannot start the server's guard")?;
        let commands = Mutex::new(guard.stdin.take());
        let (sender, events) = watch::channel(Event::None);
        thread::Builder::new()
            .name("postgres-guard".to_owned())
            .spawn(move || listen(guard, &sender))
            .context("cannot start a thread")?;
        Ok(Self { commands, events })
    }

    /// Sends a command and waits for the next message.
    pub(super) async fn send(&self, command: &str, limit: Duration) -> Result<Event> {
        let mut events = self.events.clone();
        // Earlier messages do not answer this command.
        events.borrow_and_update();
        self.commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            .context("the guard is closed")?
            .write_all(format!("{command}\n").as_bytes())
            .context("the guard does not accept commands")?;
        timeout(limit, events.changed())
            .await
            .with_context(|| format!("no answer to `{command}` within {limit:?}"))?
            .context("the guard has ended")?;
        Ok(*events.borrow())
    }

    pub(super) fn latest(&self) -> Event {
        *self.events.borrow()
    }

    /// Waits for a message that `wanted` accepts.
    pub(super) async fn until(
        &self,
        limit: Duration,
        wanted: impl FnMut(&Event) -> bool,
    ) -> Result<Event> {
        let mut events = self.events.clone();
        let found = timeout(limit, events.wait_for(wanted))
            .await
            .with_context(|| {
                format!("the server did not reach the expected state within {limit:?}")
            })?
            .context("the guard has ended")?;
        Ok(*found)
    }

    /// Closes the pipe: the guard stops the server and removes its home.
    pub(super) fn close(&self) {
        self.commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

/// Reads the guard's messages until it ends, then reaps it.
fn listen(mut guard: Child, events: &watch::Sender<Event>) {
    let answers = guard.stdout.take().map(BufReader::new);
    for line in answers
        .into_iter()
        .flat_map(BufReader::lines)
        .map_while(Result::ok)
    {
        let event = match line.split_once(' ') {
            Some(("started", pid)) => pid.parse().ok().map(Event::Started),
            _ if line == "initialized" => Some(Event::Initialized),
            _ if line == "exited" => Some(Event::Exited),
            _ => None,
        };
        if let Some(event) = event {
            events.send_replace(event);
        }
    }
    // The guard closes its output only by ending; its exit code does not matter.
    let _ = guard.wait();
    events.send_replace(Event::Gone);
}
