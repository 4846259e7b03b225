//! Health: the conditions under which statuses do not follow their events, each with a reason.
//!
//! Owns the one list of conditions. A condition is a gauge, an entry of `missing` at `/readyz`, and
//! one log line when it begins and one when it ends. The stages report failures through [`Stage`],
//! which logs a repeated failure when its reason changes and otherwise once a minute. Used by the
//! stages, the sampler and the listener.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::error::{Error, chain};
use crate::metrics::{Condition, Metrics};

/// A stage that has failed for longer than this is unhealthy.
const FAILING_AFTER: Duration = Duration::from_secs(10);

/// The interval between two log lines of the same repeated failure.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The shortest interval between two log lines of failures whose reason changes.
const MIN_LOG_INTERVAL: Duration = Duration::from_secs(5);

/// All conditions. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    metrics: Metrics,
    failing: Arc<Mutex<Vec<Failing>>>,
}

/// A stage whose last attempt failed.
#[derive(Debug, Clone)]
struct Failing {
    stage: &'static str,
    since: Instant,
    reason: String,
}

impl Health {
    /// Without any condition.
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            failing: Arc::default(),
        }
    }

    /// Sets a condition: the reason while it holds, none otherwise. Logs when it begins, when its
    /// reason changes and when it ends.
    pub(crate) fn set(&self, condition: Condition, reason: Option<&str>) {
        let before = self.metrics.set_condition(condition, reason);
        match (before, reason) {
            (before, Some(reason)) if is_news(before.as_deref(), reason) => {
                tracing::error!(condition = condition.name(), reason, "unhealthy");
            }
            (Some(_), None) => {
                tracing::info!(condition = condition.name(), "healthy again");
            }
            _ => {}
        }
    }

    /// Sets a condition that the daemon itself is about to end, as its first backfill does: a
    /// warning where [`Health::set`] logs an error.
    pub(crate) fn set_transient(&self, condition: Condition, reason: &str) {
        let before = self.metrics.set_condition(condition, Some(reason));
        if is_news(before.as_deref(), reason) {
            tracing::warn!(condition = condition.name(), reason, "not healthy yet");
        }
    }

    /// Sets the condition of the stages, from what they have reported. Called at an interval.
    pub(crate) fn check_stages(&self) {
        let failing = self.lock();
        let reasons: Vec<String> = failing
            .iter()
            .filter(|failing| failing.since.elapsed() >= FAILING_AFTER)
            .map(|failing| format!("{}: {}", failing.stage, failing.reason))
            .collect();
        drop(failing);
        let reason = (!reasons.is_empty()).then(|| reasons.join("; "));
        self.set(Condition::StageFailing, reason.as_deref());
    }

    /// The reporter of one stage, whose retries wait from `first` to `ceiling`.
    pub(crate) fn stage(&self, name: &'static str, first: Duration, ceiling: Duration) -> Stage {
        Stage {
            health: Some(self.clone()),
            ..Stage::optional(name, first, ceiling)
        }
    }

    fn failed(&self, stage: &'static str, reason: &str) {
        let mut failing = self.lock();
        match failing.iter_mut().find(|failing| failing.stage == stage) {
            Some(failing) => reason.clone_into(&mut failing.reason),
            None => failing.push(Failing {
                stage,
                since: Instant::now(),
                reason: reason.to_owned(),
            }),
        }
    }

    fn recovered(&self, stage: &'static str) {
        self.lock().retain(|failing| failing.stage != stage);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Failing>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a reason differs from the one before in more than its numbers, such as an age.
fn is_news(before: Option<&str>, reason: &str) -> bool {
    let words = |text: &str| text.replace(|character: char| character.is_ascii_digit(), "");
    before.is_none_or(|before| words(before) != words(reason))
}

/// Reports the outcome of a stage's work, and paces its retries.
#[derive(Debug)]
pub(crate) struct Stage {
    name: &'static str,
    /// None if failures of this work are not a condition.
    health: Option<Health>,
    backoff: Backoff,
    /// The failure that was last logged, and its time.
    reported: Option<(String, Instant)>,
}

impl Stage {
    /// A reporter of work that the daemon can do without: failures are logged, but are not a
    /// condition.
    pub(crate) fn optional(name: &'static str, first: Duration, ceiling: Duration) -> Self {
        Self {
            name,
            health: None,
            backoff: Backoff::new(first, ceiling),
            reported: None,
        }
    }

    /// The work succeeded.
    pub(crate) fn succeeded(&mut self) {
        if self.backoff.is_fresh() {
            return;
        }
        self.backoff.reset();
        if let Some(health) = &self.health {
            health.recovered(self.name);
        }
        if self.reported.take().is_some() {
            tracing::info!(stage = self.name, "recovered");
        }
    }

    /// The work failed; returns how long to wait before the retry. `what` describes the work.
    pub(crate) fn failed(&mut self, error: &Error, what: &'static str) -> Duration {
        let reason = chain(error);
        if let Some(health) = &self.health {
            health.failed(self.name, &reason);
        }
        let due = self.reported.as_ref().is_none_or(|(last, at)| {
            let interval = if *last == reason {
                LOG_INTERVAL
            } else {
                MIN_LOG_INTERVAL
            };
            at.elapsed() >= interval
        });
        if due {
            tracing::warn!(
                stage = self.name,
                error = reason,
                hint = error.remedy().hint(),
                "{what}"
            );
            self.reported = Some((reason, Instant::now()));
        }
        self.backoff.next_wait()
    }

    /// Whether the last attempt failed.
    pub(crate) fn is_failing(&self) -> bool {
        !self.backoff.is_fresh()
    }
}
