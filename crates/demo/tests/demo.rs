//! The demo as a person starts it: its report is correct, its commands work, and it leaves nothing
//! behind.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use testkit::wait::{eventually, eventually_some, within};

const TIMEOUT: Duration = Duration::from_secs(120);

/// A running demo, with a temporary directory of its own to check for leftovers.
struct Demo {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    printed: Vec<String>,
    home: tempfile::TempDir,
}

impl Demo {
    fn start(args: &[&str]) -> Self {
        let home = tempfile::Builder::new()
            .prefix("demo-")
            .tempdir_in("/tmp")
            .expect("a temporary directory");
        // Set afterwards, because the umask reduces the mode that a directory is created with.
        std::fs::set_permissions(home.path(), open_to_all()).expect("it is ours");
        let mut child = command(home.path())
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the demo can be executed");
        let stdout = child.stdout.take().expect("it was asked for");
        Self {
            child,
            lines: BufReader::new(stdout).lines(),
            printed: Vec::new(),
            home,
        }
    }

    /// Reads until a line that contains this text; none if the demo exits before.
    async fn prints(&mut self, text: &str) -> Option<String> {
        let reading = async {
            while let Ok(Some(line)) = self.lines.next_line().await {
                self.printed.push(line.clone());
                if line.contains(text) {
                    return Some(line);
                }
            }
            None
        };
        within(TIMEOUT, &format!("it prints {text:?}"), reading).await
    }

    /// Waits until the demo exits, and returns its output; fails unless the exit code is the
    /// expected one.
    async fn exits(mut self, code: i32) -> String {
        self.prints("\0 what it never prints").await;
        let status: ExitStatus = within(TIMEOUT, "it exits", self.child.wait())
            .await
            .expect("it can be waited for");
        let mut errors = String::new();
        let stderr = self.child.stderr.as_mut().expect("it was asked for");
        stderr
            .read_to_string(&mut errors)
            .await
            .expect("its log is UTF-8");
        let printed = self.printed.join("\n");
        assert_eq!(status.code(), Some(code), "{printed}\n{errors}");
        // Warnings are allowed: a sweep may be late on a busy machine.
        assert!(!errors.contains("ERROR"), "{printed}\n{errors}");
        self.leaves_nothing().await;
        printed
    }

    /// The guard of its server ends after the demo.
    async fn leaves_nothing(&self) {
        let home = self.home.path();
        eventually(TIMEOUT, "nothing is left behind", async || {
            entries(home).is_empty() && !mentioned(home)
        })
        .await;
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("it was not waited for yet");
        let pid = Pid::from_raw(i32::try_from(pid).expect("process ids are small"));
        kill(pid, signal).expect("it runs");
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // The server's guard removes the rest.
        let _ = self.child.start_kill();
    }
}

fn command(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_status-indexer-demo"));
    command
        .env("TMPDIR", home)
        .env_remove("STATUS_INDEXER_LOG")
        .env_remove("STATUS_INDEXER_LOG_FORMAT")
        .stdin(Stdio::null());
    command
}

/// A server that a root process starts runs under another account, which must get in.
fn open_to_all() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o1777)
}

fn entries(home: &Path) -> Vec<PathBuf> {
    let found = std::fs::read_dir(home).expect("it is there until the test ends");
    found.flatten().map(|entry| entry.path()).collect()
}

/// Whether a process has the directory on its command line.
fn mentioned(home: &Path) -> bool {
    let listing = std::process::Command::new("ps")
        .args(["-A", "-o", "args="])
        .output()
        .expect("every system has ps");
    String::from_utf8_lossy(&listing.stdout).contains(&*home.to_string_lossy())
}

#[tokio::test]
async fn the_demo_finds_no_drift_and_leaves_nothing_behind() {
    let mut demo = Demo::start(&["--duration", "5", "--seed", "7"]);
    demo.prints("Try in another terminal:").await;
    assert!(
        !entries(demo.home.path()).is_empty(),
        "its server has another directory"
    );
    demo.prints("compared").await;
    let printed = demo.exits(0).await;
    let last = printed.lines().last().unwrap_or_default();
    assert!(last.starts_with("drift        0 of 2"), "{printed}");
    let expected = printed.lines().find(|line| line.starts_with("expected"));
    let mut numbers = expected
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse::<u32>().ok());
    let (right, all) = (numbers.next(), numbers.next());
    assert!(right == all && all > Some(0), "{printed}");
}

#[tokio::test]
async fn the_demos_commands_work_as_they_are_printed() {
    let mut demo = Demo::start(&["--duration", "600"]);
    let mut commands = Vec::new();
    demo.prints("Try in another terminal:").await;
    demo.prints("A row that differs").await;
    let printed = demo.printed.join("\n");
    let (_, after) = printed
        .split_once("terminal:\n")
        .expect("the line was read");
    let (block, _) = after.split_once("\n\n").expect("a blank line ends them");
    for command in block.replace("\\\n", " ").lines() {
        let output = eventually_some(TIMEOUT, command, async || {
            let output = Command::new("sh").args(["-c", command]).output();
            let output = output.await.expect("sh runs");
            assert!(output.status.success(), "{command}: {output:?}");
            let printed = String::from_utf8_lossy(&output.stdout).into_owned();
            // The backfill takes a moment, less than a person needs to type the command.
            (!printed.contains("the backfill is not complete")).then_some(printed)
        });
        commands.push(output.await);
    }
    let [counts, explanation, runs, metrics] = &commands[..] else {
        panic!("four commands: {commands:?}");
    };
    assert!(runs.contains(r#""status":"failed""#), "{runs}");
    assert!(counts.contains("completed"), "{counts}");
    assert!(explanation.contains("because   "), "{explanation}");
    assert!(
        metrics.contains("status_indexer_event_lag_seconds_count"),
        "{metrics}"
    );

    let page = printed.lines().find_map(|line| {
        let address = line.strip_prefix("status page")?;
        Some(address.trim().to_owned())
    });
    let client = reqwest::Client::builder().no_proxy().build();
    let page = client
        .expect("a plain client needs nothing")
        .get(page.expect("the page's address is printed"))
        .send()
        .await
        .expect("the page is served")
        .text()
        .await
        .expect("the page is text");
    assert!(page.starts_with("<!doctype html>"), "{page}");

    demo.signal(Signal::SIGTERM);
    let printed = demo.exits(0).await;
    assert!(printed.contains("\ndrift        0 of 2"), "{printed}");
}

#[tokio::test]
async fn a_demo_stopped_while_it_starts_leaves_nothing_behind() {
    let mut demo = Demo::start(&[]);
    demo.prints("starting a private PostgreSQL").await;
    demo.signal(Signal::SIGINT);
    let printed = demo.exits(2).await;
    assert!(printed.ends_with("stopped before there was anything to see"));
}

#[tokio::test]
async fn a_killed_demo_leaves_nothing_behind() {
    let mut demo = Demo::start(&["--duration", "600"]);
    demo.prints("Try in another terminal:").await;
    assert!(
        !entries(demo.home.path()).is_empty(),
        "its server has another directory"
    );
    demo.signal(Signal::SIGKILL);
    demo.leaves_nothing().await;
}

#[tokio::test]
async fn without_a_postgresql_server_the_demo_says_what_to_install() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let output = command(home.path())
        .env("STATUS_INDEXER_PG_BIN", home.path())
        .output()
        .await
        .expect("the demo can be executed");
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        log.contains("does not contain initdb and postgres"),
        "{log}"
    );
}

#[tokio::test]
async fn the_help_is_as_reviewed() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let output = command(home.path())
        .arg("--help")
        .output()
        .await
        .expect("the demo can be executed");
    assert_eq!(output.status.code(), Some(0));
    insta::assert_snapshot!(String::from_utf8_lossy(&output.stdout));
}
