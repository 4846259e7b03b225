//! Every metric, in one struct and one registry.
//!
//! The doc comment of a metric is its help text and its documentation. Labels are bounded, and every
//! combination that is known beforehand is exported from the start, so that `increase()` sees the first
//! event too; ids of flows and runs go to the log. The names of statements are known to their modules
//! only: their counters appear with the first call.

mod conditions;
mod lags;

use prometheus::core::{Collector as _, Desc};
use prometheus::{
    CounterVec, Encoder as _, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use tokio_postgres::error::SqlState;

use crate::error::Error;
use crate::status::{Reason, Status};
use crate::version;
pub use conditions::Condition;
use conditions::Conditions;
pub use lags::Lags;

/// Upper bounds in seconds for durations that should be milliseconds: 0.5 ms to 60 s.
const LAG_BUCKETS: [f64; 16] = [
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0,
    15.0, 60.0,
];

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ident $(($($label:literal),+))? $([$buckets:expr])?,)+) => {
        /// The daemon's metrics; the names in the registry carry the prefix `status_indexer_`.
        #[derive(Debug, Clone)]
        pub struct Metrics {
            registry: Registry,
            conditions: Conditions,
            $($(#[doc = $help])+ pub $field: $kind,)+
        }

        impl Metrics {
            /// A registry with every metric in it.
            #[must_use]
            pub fn new() -> Self {
                let registry = Registry::new();
                $(let $field = {
                    let help = concat!($($help),+).trim();
                    let metric = metrics!(@make $kind, stringify!($field), help $(, ($($label),+))? $(, [$buckets])?)
                        .expect("names and labels are literals of the right form");
                    registry
                        .register(Box::new(metric.clone()))
                        .expect("names of fields are distinct");
                    metric
                };)+
                let metrics = Self { registry, conditions: Conditions::default(), $($field),+ };
                metrics.export_known_labels();
                metrics
            }

            /// All metrics, in the order of their declaration.
            #[must_use]
            pub fn declared(&self) -> Vec<Declared> {
                let kinds = [$((self.$field.desc(), stringify!($kind))),+];
                kinds.into_iter().filter_map(|(descs, kind)| Declared::read(&descs, kind)).collect()
            }
        }
    };
    (@make Histogram, $name:expr, $help:expr, [$buckets:expr]) => {
        Histogram::with_opts(HistogramOpts::new($name, $help).namespace("status_indexer").buckets($buckets.to_vec()))
    };
    (@make HistogramVec, $name:expr, $help:expr, ($($label:literal),+), [$buckets:expr]) => {
        HistogramVec::new(HistogramOpts::new($name, $help).namespace("status_indexer").buckets($buckets.to_vec()), &[$($label),+])
    };
    (@make $kind:ident, $name:expr, $help:expr, ($($label:literal),+)) => {
        $kind::new(Opts::new($name, $help).namespace("status_indexer"), &[$($label),+])
    };
    (@make $kind:ident, $name:expr, $help:expr) => {
        $kind::with_opts(Opts::new($name, $help).namespace("status_indexer"))
    };
}

metrics! {
    /// Always 1; the labels are the version of the binary, and the commit from which it was built.
    build_info: GaugeVec("version", "commit"),
    /// 1 while the database answers.
    up: IntGauge,
    /// 1 while this daemon is the leader.
    leader: IntGauge,
    /// 1 while the column is valid: a scan of all runs is complete, with all triggers enabled.
    valid: IntGauge,
    /// 1 while a condition holds under which statuses may be wrong or late.
    unhealthy: IntGaugeVec("condition"),
    /// 1 while this daemon is the leader and polls the queue, because it has no LISTEN connection.
    leader_without_listen: IntGauge,
    /// 1 while the LISTEN connection is open; always 0 behind a transaction pooler without `--listen-url`.
    listener_connected: IntGauge,
    /// 1 if the daemon is behind a transaction pooler, where it polls instead of using LISTEN.
    transaction_pooling: IntGauge,
    /// LISTEN connections lost and reopened.
    listener_reconnects_total: IntCounter,
    /// Notifications received from writers.
    notifications_total: IntCounter,
    /// Usage of the server's notification queue, 0 to 1.
    notify_queue_usage_ratio: Gauge,
    /// Events in the queue; counted up to 10000.
    queue_depth: IntGauge,
    /// Age of the oldest event in the queue, in seconds.
    queue_oldest_age_seconds: Gauge,
    /// Events taken from the queue.
    events_total: IntCounter,
    /// Statuses written.
    transitions_total: IntCounterVec("from", "to", "reason"),
    /// Messages to the web UI, with `--notify-ui`; `dropped` if more waited than are kept, or the server
    /// could not take them.
    ui_notifications_total: IntCounterVec("outcome"),
    /// Time from writing an event to committing its status, in seconds.
    event_lag_seconds: Histogram[LAG_BUCKETS],
    /// Time from a deadline to committing the status, in seconds.
    sweep_lag_seconds: Histogram[LAG_BUCKETS],
    /// Duration of one scan for passed deadlines, in seconds.
    sweep_duration_seconds: Histogram[LAG_BUCKETS],
    /// How long the bounds for readers have been outdated, in seconds; 0 while they contain the present.
    /// Outdated bounds make reads slower, never wrong.
    read_bounds_outdated_seconds: Gauge,
    /// Runs by stored status; running as of the last sweep, the others as of the last
    /// reconciliation pass.
    runs: GaugeVec("status"),
    /// Runs compared with the definition by scans of all runs.
    reconciled_total: IntCounter,
    /// Runs whose stored status differed with no pending event or deadline to explain it.
    drift_total: CounterVec("cause"),
    /// Completion time of the last scan of all runs, in seconds since the epoch.
    reconcile_last_pass_timestamp_seconds: Gauge,
    /// Evaluations of runs whose latest attempt_ok is not a valid boolean (treated as missing).
    invalid_evidence_total: IntCounter,
    /// Calls that did not get a table lock in time.
    lock_timeouts_total: IntCounter,
    /// Attempts to write a run that failed because another transaction held its row.
    rows_locked_total: IntCounter,
    /// Attempts to evaluate or to write a run that failed because the server refused.
    rows_refused_total: IntCounter,
    /// Failed database calls; sqlstate is `none` if the server did not answer.
    db_errors_total: IntCounterVec("sqlstate"),
    /// Calls of the stages into the database, by the name of the statement.
    db_calls_total: IntCounterVec("statement"),
    /// Time that these calls took, with the wait for a connection, in seconds.
    db_call_seconds_total: CounterVec("statement"),
    /// Connections of the pool, by state: idle or used.
    pool_connections: GaugeVec("state"),
    /// Calls that did not get a connection of the pool in time.
    pool_timeouts_total: IntCounter,
    /// Requests to the read API.
    http_requests_total: IntCounterVec("route", "code"),
    /// Requests to the read API that got a 503 because a limit was reached: on concurrent reads
    /// (`reads`), or on the memory of answers (`memory`).
    http_requests_rejected_total: IntCounterVec("limit"),
    /// Time from a request to the head of its response, in seconds.
    http_request_duration_seconds: HistogramVec("route")[LAG_BUCKETS],
    /// HTTP connections closed because a limit on time or on their number was reached.
    http_connections_closed_total: IntCounterVec("listener", "reason"),
    /// TLS handshakes that failed, and HTTP requests without a valid token.
    http_refused_total: IntCounterVec("listener", "reason"),
    /// Expiry of the certificate in use by a listener with TLS, in seconds since the epoch.
    tls_certificate_expiry_timestamp_seconds: GaugeVec("listener"),
    /// 1 while a changed certificate or token file cannot be used, and its previous content remains in use.
    credentials_stale: IntGaugeVec("listener", "credential"),
}

/// A metric as declared; tests compare the documentation with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// With the prefix.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: Vec<String>,
    /// Its help text.
    pub help: String,
}

impl Declared {
    fn read(descs: &[&Desc], kind: &str) -> Option<Self> {
        let desc = descs.first()?;
        let kind = ["counter", "gauge", "histogram"]
            .into_iter()
            .find(|known| kind.to_lowercase().contains(known))?;
        Some(Self {
            name: desc.fq_name.clone(),
            kind,
            labels: desc.variable_labels.clone(),
            help: desc.help.clone(),
        })
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Causes of drift.
const CAUSES: [&str; 2] = ["evidence", "time"];

/// The codes of `db_errors_total` that are exported from the start: those that operations know, and
/// those that the runbook explains. `none` is a server that did not answer.
const SQLSTATES: [&str; 24] = [
    "none", "25006", "28000", "28P01", "3D000", "3F000", "40001", "40P01", "42501", "42703",
    "42883", "42P01", "53100", "53200", "53300", "54000", "54001", "55P03", "57014", "57P01",
    "57P03", "58030", "XX001", "XX002",
];

/// Routes of the read API; `other` is a path that is not a route.
const ROUTES: [&str; 4] = ["runs", "run_status", "openapi", "other"];

/// HTTP codes that are exported from the start for each route.
const CODES: [&str; 3] = ["200", "400", "503"];

/// The limit on concurrent reads, as a label of a rejected request.
pub(crate) const READS_LIMIT: &str = "reads";

/// The limit on the memory of answers, as a label of a rejected request.
pub(crate) const MEMORY_LIMIT: &str = "memory";

/// Listeners, as labels.
const LISTENERS: [&str; 2] = ["metrics", "api"];

/// The reason of a connection that was closed in favour of a new one.
pub(crate) const CONNECTION_LIMIT: &str = "connection_limit";

/// A listener refused a client: its TLS handshake failed.
pub(crate) const REFUSED_TLS: &str = "tls";

/// A listener refused a request: it has no valid token.
pub(crate) const REFUSED_TOKEN: &str = "token";

/// What a listener reads from files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// Its certificate and key.
    Certificate,
    /// The tokens that it accepts.
    Tokens,
}

impl Credential {
    /// Its name in metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Tokens => "tokens",
        }
    }
}

/// Why a listener closes a connection.
const CLOSED: [&str; 6] = [
    "handshake_timeout",
    "head_timeout",
    "idle_timeout",
    "request_timeout",
    "write_timeout",
    CONNECTION_LIMIT,
];

impl Metrics {
    /// Exports the combinations of labels that are known beforehand as 0. A counter that appears with
    /// the value 1 has no increase, so an alert would miss the first event.
    fn export_known_labels(&self) {
        for condition in Condition::ALL {
            self.unhealthy.with_label_values(&[condition.name()]);
        }
        for cause in CAUSES {
            self.drift_total.with_label_values(&[cause]);
        }
        for sqlstate in SQLSTATES {
            self.db_errors_total.with_label_values(&[sqlstate]);
        }
        for reason in Reason::ALL {
            let to = reason.status();
            for from in Status::ALL.into_iter().filter(|from| *from != to) {
                let labels = [from.as_str(), to.as_str(), reason.as_str()];
                self.transitions_total.with_label_values(&labels);
            }
        }
        for outcome in ["sent", "dropped"] {
            self.ui_notifications_total.with_label_values(&[outcome]);
        }
        for state in ["idle", "used"] {
            self.pool_connections.with_label_values(&[state]);
        }
        for listener in LISTENERS {
            for reason in CLOSED {
                self.http_connections_closed_total
                    .with_label_values(&[listener, reason]);
            }
        }
        for listener in LISTENERS {
            for reason in [REFUSED_TLS, REFUSED_TOKEN] {
                self.http_refused_total
                    .with_label_values(&[listener, reason]);
            }
            for credential in [Credential::Certificate, Credential::Tokens] {
                self.credentials_stale
                    .with_label_values(&[listener, credential.name()]);
            }
        }
        for limit in [READS_LIMIT, MEMORY_LIMIT] {
            self.http_requests_rejected_total
                .with_label_values(&[limit]);
        }
        for route in ROUTES {
            self.http_request_duration_seconds
                .with_label_values(&[route]);
            for code in CODES {
                self.http_requests_total.with_label_values(&[route, code]);
            }
        }
    }

    /// Sets or clears a condition, with its reason; returns the reason before, if it held.
    pub fn set_condition(&self, condition: Condition, reason: Option<&str>) -> Option<String> {
        self.unhealthy
            .with_label_values(&[condition.name()])
            .set(reason.is_some().into());
        self.conditions.set(condition, reason)
    }

    /// Counts a failed call into the database, by the server's code.
    pub(crate) fn count_db_error(&self, error: &Error) {
        let code = error.sqlstate().map_or("none", SqlState::code);
        self.db_errors_total.with_label_values(&[code]).inc();
    }

    /// The conditions that hold, each with its reason.
    #[must_use]
    pub fn conditions(&self) -> Vec<(Condition, String)> {
        self.conditions.all()
    }

    /// Why the daemon is not ready, for `/readyz` and the status page; empty if it is.
    #[must_use]
    pub fn unmet(&self) -> Vec<String> {
        let mut unmet: Vec<String> = Vec::new();
        if self.up.get() == 0 {
            unmet.push("the database does not answer".to_owned());
        }
        for (condition, reason) in self.conditions() {
            if condition != Condition::DatabaseUnreachable {
                unmet.push(reason);
            }
        }
        // Before the first sample.
        if unmet.is_empty() && self.valid.get() == 0 {
            unmet.push("the column is not valid: the backfill is not complete".to_owned());
        }
        unmet
    }

    /// Adds the process's own metrics (memory, CPU, descriptors), where the platform has them.
    pub fn watch_process(&self) {
        #[cfg(target_os = "linux")]
        self.registry
            .register(Box::new(
                prometheus::process_collector::ProcessCollector::for_self(),
            ))
            .expect("the process collector is registered once");
        self.build_info
            .with_label_values(&[version::VERSION, version::COMMIT])
            .set(1.0);
    }

    /// Runs by status, where they have been counted: status and number.
    #[must_use]
    pub fn counted_runs(&self) -> Vec<(String, f64)> {
        self.runs
            .collect()
            .iter()
            .flat_map(|family| family.get_metric())
            .filter_map(|metric| {
                let status = metric.get_label().first()?.value().to_owned();
                Some((status, metric.get_gauge().get_value()))
            })
            .collect()
    }

    /// Runs with drift so far, whatever the cause.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the counter holds whole numbers"
    )]
    pub fn counted_drift(&self) -> u64 {
        let families = self.drift_total.collect();
        let metrics = families.iter().flat_map(|family| family.get_metric());
        metrics
            .map(|metric| metric.get_counter().get_value() as u64)
            .sum()
    }

    /// Statuses written so far, most frequent first, without those that were never written: from, to,
    /// reason and number.
    #[must_use]
    pub fn counted_transitions(&self) -> Vec<([String; 3], u64)> {
        let mut counted: Vec<_> = self
            .transitions_total
            .collect()
            .iter()
            .flat_map(|family| family.get_metric())
            .map(|metric| {
                let label = |name: &str| {
                    let labels = metric.get_label().iter();
                    let mut found = labels.filter(|label| label.name() == name);
                    found
                        .next()
                        .map_or_else(String::new, |label| label.value().to_owned())
                };
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "the counter holds whole numbers"
                )]
                let count = metric.get_counter().get_value() as u64;
                ([label("from"), label("to"), label("reason")], count)
            })
            .collect();
        counted.retain(|(_, count)| *count > 0);
        counted.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        counted
    }

    /// The registry in Prometheus's text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("writing to memory does not fail");
        String::from_utf8(text).expect("the text format is UTF-8")
    }
}
