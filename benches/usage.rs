//! Processor time and memory of processes, as Linux reports them.
//!
//! Owns the reading of `/proc`. On other systems the values are missing: memory is then none and
//! processor time 0. Called by the benchmarks around what they measure.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio_postgres::Client;

/// The processor time that a process has used, without its exited threads.
pub(crate) fn cpu(pid: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let nanos = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
        .sum();
    Some(Duration::from_nanos(nanos))
}

/// A field of `/proc/PID/status` such as `VmRSS`, in MiB.
pub(crate) fn memory_mib(pid: u32, field: &str) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

/// The load average of the last minute.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

/// The process ids of the sessions with this application name; of all sessions if it is none.
pub(crate) async fn backends(client: &Client, application: Option<&str>) -> Result<BTreeSet<u32>> {
    const BACKENDS: &str = "\
select pid
  from pg_stat_activity
 where backend_type = 'client backend'
   and pid <> pg_backend_pid()
   and (application_name = $1 or $1 is null)";
    let rows = client.query(BACKENDS, &[&application]).await?;
    Ok(rows
        .iter()
        .map(|row| row.get::<_, i32>(0).unsigned_abs())
        .collect())
}

/// Measures the processor time that some processes use from now on.
#[derive(Debug)]
pub(crate) struct Meter {
    started: Instant,
    before: Vec<(u32, Duration)>,
}

impl Meter {
    pub(crate) fn start(pids: impl IntoIterator<Item = u32>) -> Self {
        let before = pids
            .into_iter()
            .filter_map(|pid| Some((pid, cpu(pid)?)))
            .collect();
        Self {
            started: Instant::now(),
            before,
        }
    }

    /// The processor time used since the start, by the processes that still exist.
    pub(crate) fn used(&self) -> Duration {
        self.before
            .iter()
            .filter_map(|(pid, before)| Some(cpu(*pid)?.saturating_sub(*before)))
            .sum()
    }

    /// The same as a percentage of one core.
    pub(crate) fn percent(&self) -> f64 {
        100.0 * self.used().as_secs_f64() / self.started.elapsed().as_secs_f64()
    }
}
