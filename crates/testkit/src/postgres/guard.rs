//! The shell that holds the server, and the talk with it.
//!
//! Owns the pipe whose closing is the guard's signal to clean up: the kernel closes it when this
//! process dies, in whatever way, and no child inherits it. Promises that orders are answered or
//! fail with a deadline. A plain thread reads the answers, so that the guard belongs to no runtime.

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

/// The last thing that the guard said about the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// Nothing yet.
    Posted,
    /// The data directory is ready to start from.
    Initialized,
    /// The postmaster was forked, with this process id.
    Started(u32),
    /// The server, or the attempt to create one, has ended.
    Exited,
    /// The guard itself has ended, and the directory with it.
    Gone,
}

/// A guard at its post. Dropping it closes the pipe.
#[derive(Debug)]
pub(super) struct Guard {
    orders: Mutex<Option<ChildStdin>>,
    news: watch::Receiver<News>,
}

impl Guard {
    /// Starts the guard over an empty home.
    pub(super) fn post(programs: &Path, home: &Home) -> Result<Self> {
        let mut command = Command::new("sh");
        command
            .args(["-c", SCRIPT, "status-indexer-guard"])
            .args([home.path(), programs])
            // Messages in English, whatever the machine speaks: some are recognized.
            .env("LC_ALL", "C")
            .current_dir(home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0);
        if let Some(account) = home.account() {
            command.uid(account.uid).gid(account.gid);
        }
        let mut guard = command
            .spawn()
            .context("cannot start the shell that guards the server")?;
        let orders = Mutex::new(guard.stdin.take());
        let (sender, news) = watch::channel(News::Posted);
        thread::Builder::new()
            .name("postgres-guard".to_owned())
            .spawn(move || listen(guard, &sender))
            .context("cannot start a thread")?;
        Ok(Self { orders, news })
    }

    /// Gives an order and waits for the news that it makes.
    pub(super) async fn order(&self, order: &str, limit: Duration) -> Result<News> {
        let mut news = self.news.clone();
        // What was said before does not answer this order.
        news.borrow_and_update();
        self.orders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            .context("the guard was dismissed")?
            .write_all(format!("{order}\n").as_bytes())
            .context("the guard takes no orders")?;
        timeout(limit, news.changed())
            .await
            .with_context(|| format!("no answer to `{order}` within {limit:?}"))?
            .context("the guard is gone")?;
        Ok(*news.borrow())
    }

    pub(super) fn latest(&self) -> News {
        *self.news.borrow()
    }

    /// Waits for news that `wanted` accepts.
    pub(super) async fn until(
        &self,
        limit: Duration,
        wanted: impl FnMut(&News) -> bool,
    ) -> Result<News> {
        let mut news = self.news.clone();
        let found = timeout(limit, news.wait_for(wanted))
            .await
            .with_context(|| format!("the server did not get there within {limit:?}"))?
            .context("the guard is gone")?;
        Ok(*found)
    }

    /// Closes the pipe: the guard stops the server and removes its home.
    pub(super) fn dismiss(&self) {
        self.orders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

/// Reads what the guard says until it ends, then reaps it.
fn listen(mut guard: Child, news: &watch::Sender<News>) {
    let answers = guard.stdout.take().map(BufReader::new);
    for line in answers
        .into_iter()
        .flat_map(BufReader::lines)
        .map_while(Result::ok)
    {
        let said = match line.split_once(' ') {
            Some(("started", pid)) => pid.parse().ok().map(News::Started),
            _ if line == "initialized" => Some(News::Initialized),
            _ if line == "exited" => Some(News::Exited),
            _ => None,
        };
        if let Some(said) = said {
            news.send_replace(said);
        }
    }
    // The guard closes its output only by ending; what it did is done either way.
    let _ = guard.wait();
    news.send_replace(News::Gone);
}
