//! Options of the daemon.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};

use super::{defaults, listen};
use crate::http::AccessFiles;
use crate::pg::SessionMode;

/// Limits and addresses of the daemon.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Daemon")]
pub struct DaemonArgs {
    /// Address for /metrics, /healthz and /readyz.
    #[arg(
        long,
        help = "Address for /metrics, /healthz and /readyz; [::]:9487 or :9487 for all interfaces, IPv4 and IPv6",
        env = "STATUS_INDEXER_METRICS_LISTEN",
        default_value = "127.0.0.1:9487",
        value_name = "ADDR",
        value_parser = listen::address
    )]
    pub metrics_listen: SocketAddr,
    /// Certificate of the metrics listener, with its chain, a PEM file that is read again when it changes; makes it
    /// HTTPS
    #[arg(
        long,
        env = "STATUS_INDEXER_METRICS_TLS_CERT",
        value_name = "PATH",
        requires = "metrics_tls_key"
    )]
    pub metrics_tls_cert: Option<PathBuf>,
    /// Key of that certificate, a PEM file without a passphrase
    #[arg(
        long,
        env = "STATUS_INDEXER_METRICS_TLS_KEY",
        value_name = "PATH",
        requires = "metrics_tls_cert"
    )]
    pub metrics_tls_key: Option<PathBuf>,
    /// Tokens for /metrics and the status page, one a line, in a file that is read again when it changes;
    /// /healthz and /readyz need none
    #[arg(long, env = "STATUS_INDEXER_METRICS_TOKEN_FILE", value_name = "PATH")]
    pub metrics_token_file: Option<PathBuf>,
    /// Maximum connections of the daemon's pool, in addition to the LISTEN connection
    #[arg(long, env = "STATUS_INDEXER_POOL_MAX", default_value_t = 4, value_name = "N",
          value_parser = clap::value_parser!(u8).range(2..=64))]
    pub pool_max: u8,
    /// Maximum seconds that a pooled connection is used before a new one replaces it, which also ends
    /// connections to a former primary
    #[arg(long, env = "STATUS_INDEXER_POOL_MAX_AGE", default_value_t = 1_800, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub pool_max_age: u64,
    /// Seconds of nothing but refused logins after which the daemon exits, so that its supervisor
    /// starts it again with the current password; 0 to wait without limit
    #[arg(long, env = "STATUS_INDEXER_LOGIN_TIMEOUT", default_value_t = 300, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub login_timeout: u64,
    /// Pooling in front of PostgreSQL; with `transaction` (PgBouncer) the daemon polls instead of
    /// using LISTEN/NOTIFY
    #[arg(
        long,
        env = "STATUS_INDEXER_SESSION_MODE",
        default_value = "auto",
        value_enum
    )]
    pub session_mode: SessionMode,
    /// Connection string of a direct connection to the same database, for LISTEN and the leader's lock
    /// alone; behind a pooler in transaction mode the daemon needs no polling with it
    #[arg(
        long,
        env = "STATUS_INDEXER_LISTEN_URL",
        hide_env_values = true,
        value_name = "DSN"
    )]
    pub listen_url: Option<SecretString>,
    /// Notify Metaflow's web UI of lost and returned heartbeats and retries, by upstream's message on
    /// the channel `notify`
    #[arg(
        long,
        env = "STATUS_INDEXER_NOTIFY_UI",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub notify_ui: bool,
    /// Maximum seconds between full heartbeat scans; deadlines are checked as they fall due
    #[arg(long, env = "STATUS_INDEXER_SWEEP_INTERVAL", default_value_t = 10, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub sweep_interval: u64,
    /// Maximum runs per second compared by continuous background reconciliation
    #[arg(long, env = "STATUS_INDEXER_RECONCILE_RATE", default_value_t = 500, value_name = "RUNS",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub reconcile_rate: u32,
    /// Minimum seconds from the start of one reconciliation pass to the start of the next
    #[arg(long, env = "STATUS_INDEXER_RECONCILE_INTERVAL", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub reconcile_interval: u64,
    /// Maximum seconds that an event may stay in the queue before /readyz returns 503
    #[arg(long, env = "STATUS_INDEXER_MAX_EVENT_AGE", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub max_event_age: u64,
    /// Maximum seconds to finish work in progress after SIGTERM or SIGINT
    #[arg(long, env = "STATUS_INDEXER_SHUTDOWN_TIMEOUT", default_value_t = 10, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=600))]
    pub shutdown_timeout: u64,
}

impl DaemonArgs {
    /// The connection string for LISTEN, if it is set.
    #[must_use]
    pub fn listen_url(&self) -> Option<&SecretString> {
        let url = self.listen_url.as_ref();
        url.filter(|url| !url.expose_secret().is_empty())
    }

    /// The defaults, whatever the environment contains.
    #[must_use]
    pub fn defaults() -> Self {
        defaults()
    }

    /// The files that decide who may use the listener.
    #[must_use]
    pub fn access_files(&self) -> AccessFiles {
        let pair = self
            .metrics_tls_cert
            .clone()
            .zip(self.metrics_tls_key.clone());
        AccessFiles {
            tls: pair,
            tokens: self.metrics_token_file.clone(),
        }
    }
}
