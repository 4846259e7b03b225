//! Signals to other processes, and whether they run.
//!
//! Reads `/proc` where it exists, else the output of `ps`. A process that has ended but was not
//! reaped counts as ended. Signals are sent by the shell's `kill`, which every system has, so that
//! no unsafe call is needed. Called by [`super::Postgres`].

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use tokio::process::Command;

/// Sends a signal (`KILL`, `INT`, ...) to each process; one that has ended is not an error.
pub(super) async fn signal(name: &str, pids: &[u32]) -> Result<()> {
    // The exit status does not distinguish a process that had ended from other failures.
    Command::new("sh")
        .args([
            "-c",
            r#"name=$1; shift; kill -s "$name" "$@""#,
            "kill",
            name,
        ])
        .args(pids.iter().map(u32::to_string))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await
        .map(drop)
        .context("cannot run sh to send a signal")
}

/// The running children of a process.
pub(super) async fn children(parent: u32) -> Result<Vec<u32>> {
    Ok(running()
        .await?
        .into_iter()
        .filter(|process| process.parent == parent)
        .map(|process| process.pid)
        .collect())
}

/// Whether any of the processes still runs.
pub(super) async fn any_alive(pids: &[u32]) -> Result<bool> {
    Ok(running()
        .await?
        .iter()
        .any(|process| pids.contains(&process.pid)))
}

struct Process {
    pid: u32,
    parent: u32,
}

async fn running() -> Result<Vec<Process>> {
    if Path::new("/proc/self/stat").exists() {
        let entries = fs::read_dir("/proc").context("cannot read /proc")?;
        let stats = entries.filter_map(Result::ok).filter_map(|entry| {
            entry.file_name().to_str()?.parse::<u32>().ok()?;
            // The process may end meanwhile.
            fs::read_to_string(entry.path().join("stat")).ok()
        });
        return Ok(stats.filter_map(|stat| parse_stat(&stat)).collect());
    }
    let output = Command::new("ps")
        .args(["-A", "-o", "pid=", "-o", "ppid=", "-o", "stat="])
        .output()
        .await
        .context("cannot run ps to list the server's processes")?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(parse_ps)
        .collect())
}

/// Reads `pid (name) state parent ...`; the name may hold blanks and parentheses.
fn parse_stat(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(' ')?;
    let mut fields = rest.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(Process {
        pid: pid.parse().ok()?,
        parent,
    })
}

/// Reads `pid parent state`.
fn parse_ps(line: &str) -> Option<Process> {
    let mut fields = line.split_whitespace();
    let (pid, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    (!fields.next()?.starts_with('Z')).then_some(Process { pid, parent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_is_read() {
        let process = parse_stat("42 (a b) c) S 7 42 42 0 -1").expect("it runs");
        assert_eq!((process.pid, process.parent), (42, 7));
    }

    #[test]
    fn a_zombie_does_not_count_as_running() {
        assert!(parse_stat("42 (postgres) Z 7 42 42 0 -1").is_none());
        assert!(parse_ps(" 42 7 Z+").is_none());
        assert!(parse_ps(" 42 7 Ss").is_some());
    }
}
