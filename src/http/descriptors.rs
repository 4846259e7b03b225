//! Divides the process's descriptors: connections of clients must leave enough for the database.

use nix::sys::resource::{Resource, getrlimit};

/// Descriptors of the process itself: standard streams, the runtime, the listeners, the signal
/// handlers, and the files that are opened for a short time (certificates, `/proc`, passwords).
const OWN: u64 = 32;

/// Connections to the metrics listener at most: probes and scrapers are few.
const METRICS: u64 = 64;

/// Connections to either listener at least, however low the limit is.
const LEAST: u64 = 4;

/// Connections of clients, by listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// To the metrics listener.
    pub metrics: usize,
    /// To the read API.
    pub api: usize,
}

/// How many connections each listener may have, if the process keeps up to `database` connections
/// and the read API is configured for up to `api`. Logs when the limit on open files allows fewer.
#[must_use]
pub fn connections(database: usize, api: usize) -> Connections {
    // Without a limit that can be read, the configured number holds.
    let (open_files, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((u64::MAX, u64::MAX));
    let allowed = divide(open_files, database, api);
    if allowed.api < api || u64::try_from(allowed.metrics) != Ok(METRICS) {
        tracing::warn!(
            limit = open_files,
            http.max_connections = allowed.api,
            metrics.max_connections = allowed.metrics,
            "the limit on open files allows fewer HTTP connections: raise it with `ulimit -n`"
        );
    }
    allowed
}

fn divide(open_files: u64, database: usize, api: usize) -> Connections {
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    // The cancellation of a statement needs a second connection. Each listener may hold one more
    // connection, which it has accepted and not served yet.
    let reserved = OWN + 2 * count(database) + 2;
    let left = open_files.saturating_sub(reserved);
    let metrics = (left / 4).clamp(LEAST, METRICS);
    let rest = left.saturating_sub(metrics).max(LEAST);
    let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    Connections {
        metrics: size(metrics),
        api: size(count(api).min(rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_descriptors_for_the_database() {
        for (open_files, metrics, api) in [
            (u64::MAX, 64, 512),
            (1024, 64, 512),
            (512, 64, 384),
            (200, 34, 102),
            (60, 4, 4),
            (0, 4, 4),
        ] {
            let allowed = divide(open_files, 15, 512);
            assert_eq!(allowed, Connections { metrics, api }, "{open_files}");
        }
        assert_eq!(divide(1024, 15, 10).api, 10);
    }
}
