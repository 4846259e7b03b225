//! What the daemon reports while it cannot start, and how long it waits before the next attempt.
//!
//! Owns the condition `not_started`. Promises that `/readyz`, the metrics and the log give the reason
//! of the last attempt, and that a cause which only an operator can remove is not tried as often as
//! one that passes by itself: the attempt may be a migration that builds an index. Called by
//! `startup`.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::error::{Error, Remedy, chain};
use crate::metrics::{Condition, Metrics};
use crate::migrate::UpstreamMissing;
use crate::wait::remedy_for;

/// The first wait.
const FIRST: Duration = Duration::from_millis(200);

/// The longest wait for what passes by itself: a server that starts, a migration that runs.
const CEILING: Duration = Duration::from_secs(5);

/// The longest wait for an operator.
const OPERATOR_CEILING: Duration = Duration::from_secs(60);

/// The interval between two log lines of the same reason.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What a failed attempt waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// A server that does not answer or refuses the login.
    Database,
    /// Objects or privileges that a migration creates, upstream's or the indexer's.
    Migration,
    /// A change of the configuration, the database or the binary.
    Operator,
}

impl Cause {
    fn of(error: &anyhow::Error) -> Self {
        match remedy_for(error) {
            Remedy::Retry | Remedy::LogIn => Self::Database,
            Remedy::Migrate | Remedy::Grant => Self::Migration,
            _ if error.downcast_ref::<UpstreamMissing>().is_some() => Self::Migration,
            Remedy::Configure | Remedy::Refused => Self::Operator,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Waiting {
    metrics: Metrics,
    backoff: Backoff,
    operator_backoff: Backoff,
    /// The reason that was last logged, and its time.
    logged: Option<(String, Instant)>,
}

impl Waiting {
    /// Before the first attempt.
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            backoff: Backoff::new(FIRST, CEILING),
            operator_backoff: Backoff::new(FIRST, OPERATOR_CEILING),
            logged: None,
        }
    }

    /// An attempt failed; returns how long to wait before the next one.
    pub(super) fn failed(&mut self, error: anyhow::Error) -> Duration {
        let cause = Cause::of(&error);
        let unreachable = is_unreachable(&error);
        let error = match remedy_for(&error).hint() {
            Some(hint) => error.context(hint),
            None => error,
        };
        let reason = chain(error.as_ref());
        self.report(unreachable, &reason);
        self.log(cause, reason);
        match cause {
            Cause::Database | Cause::Migration => self.backoff.next_wait(),
            Cause::Operator => self.operator_backoff.next_wait(),
        }
    }

    /// The database answers, and a migration begins.
    pub(super) fn migrating(&self) {
        self.report(false, "`migrate up` is in progress");
    }

    /// The daemon has started.
    pub(super) fn end(&self) {
        self.set(Condition::DatabaseUnreachable, None);
        self.set(Condition::NotStarted, None);
    }

    fn report(&self, unreachable: bool, reason: &str) {
        self.metrics.up.set((!unreachable).into());
        self.set(
            Condition::DatabaseUnreachable,
            unreachable.then_some("the database does not answer"),
        );
        let reason = format!("the daemon has not started: {reason}");
        self.set(Condition::NotStarted, Some(&reason));
    }

    fn set(&self, condition: Condition, reason: Option<&str>) {
        self.metrics.set_condition(condition, reason);
    }

    /// Logs a reason when it changes, and otherwise at an interval.
    fn log(&mut self, cause: Cause, reason: String) {
        let due = self
            .logged
            .as_ref()
            .is_none_or(|(last, at)| *last != reason || at.elapsed() >= LOG_INTERVAL);
        if !due {
            return;
        }
        match cause {
            Cause::Database => tracing::warn!(error = reason, "waiting for the database"),
            Cause::Migration => tracing::warn!(error = reason, "waiting for a migration"),
            Cause::Operator => tracing::error!(error = reason, "cannot start; trying again"),
        }
        self.logged = Some((reason, Instant::now()));
    }
}

/// Whether the server did not answer, or refused the connection.
fn is_unreachable(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let ours = cause.downcast_ref::<Error>();
        let drivers = cause.downcast_ref::<tokio_postgres::Error>();
        ours.is_some_and(Error::is_unreachable)
            || drivers.is_some_and(tokio_postgres::Error::is_closed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable() -> anyhow::Error {
        Error::Connect("connection refused".into()).into()
    }

    #[test]
    fn the_reason_is_reported_until_the_start() {
        let metrics = Metrics::new();
        let mut waiting = Waiting::new(metrics.clone());
        waiting.failed(unreachable());
        assert_eq!(metrics.up.get(), 0);
        let missing = metrics.unmet().join("; ");
        assert!(
            missing.contains("the database does not answer"),
            "{missing}"
        );
        assert!(missing.contains("connection refused"), "{missing}");

        waiting.failed(anyhow::anyhow!("the role a does not own b"));
        assert_eq!(metrics.up.get(), 1, "the server answered");
        let missing = metrics.unmet().join("; ");
        assert!(!missing.contains("does not answer"), "{missing}");
        assert!(missing.contains("the role a does not own b"), "{missing}");

        waiting.end();
        assert_eq!(metrics.conditions(), []);
    }

    #[test]
    fn a_cause_for_an_operator_is_tried_less_often() {
        let longest = |error: fn() -> anyhow::Error| {
            let mut waiting = Waiting::new(Metrics::new());
            let waits = (0..20).map(|_| waiting.failed(error()));
            waits.max().expect("there are waits")
        };
        assert!(longest(unreachable) <= CEILING);
        assert!(longest(|| UpstreamMissing("no table".to_owned()).into()) <= CEILING);
        assert!(longest(|| anyhow::anyhow!("the role a does not own b")) > CEILING);
    }
}
