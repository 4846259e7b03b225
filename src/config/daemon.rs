//! Options of the daemon.

use std::net::SocketAddr;

use clap::Args;

use super::defaults;
use crate::pg::SessionMode;

/// What only the daemon takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Daemon")]
pub struct DaemonArgs {
    /// Address for /metrics, /healthz and /readyz
    #[arg(
        long,
        env = "STATUS_INDEXER_METRICS_LISTEN",
        default_value = "127.0.0.1:9487",
        value_name = "ADDR"
    )]
    pub metrics_listen: SocketAddr,
    /// Connections of the pool, besides the one that listens
    #[arg(long, env = "STATUS_INDEXER_POOL_MAX", default_value_t = 4, value_name = "N",
          value_parser = clap::value_parser!(u8).range(2..=64))]
    pub pool_max: u8,
    /// Whether connections are sessions of their own; behind PgBouncer's transaction pooling they
    /// are not, and the daemon polls
    #[arg(
        long,
        env = "STATUS_INDEXER_SESSION_MODE",
        default_value = "auto",
        value_enum
    )]
    pub session_mode: SessionMode,
    /// Seconds between two looks at the running runs' heartbeats, at most; deadlines have looks of their own
    #[arg(long, env = "STATUS_INDEXER_SWEEP_INTERVAL", default_value_t = 10, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub sweep_interval: u64,
    /// Runs a second that are compared with the definition, for ever, to prove the column
    #[arg(long, env = "STATUS_INDEXER_RECONCILE_RATE", default_value_t = 500, value_name = "RUNS",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub reconcile_rate: u32,
    /// Seconds from the beginning of one such pass to that of the next, at least
    #[arg(long, env = "STATUS_INDEXER_RECONCILE_INTERVAL", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub reconcile_interval: u64,
    /// Seconds to finish what is under way after SIGTERM or SIGINT
    #[arg(long, env = "STATUS_INDEXER_SHUTDOWN_TIMEOUT", default_value_t = 10, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=600))]
    pub shutdown_timeout: u64,
}

impl DaemonArgs {
    /// What a daemon runs with that is told nothing, whatever the environment holds.
    #[must_use]
    pub fn defaults() -> Self {
        defaults()
    }
}
