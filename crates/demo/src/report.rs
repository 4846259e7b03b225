//! The demo's report: what was written, how fast the statuses followed, and whether they are
//! correct.
//!
//! Owns the exit code. Two conditions are checked once nothing is pending: that each stored status
//! equals the definition's, and that each finished run has the status that its client expects,
//! which is known without the definition. Called by [`crate::demo`].

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use status_indexer::exit::Exit;
use status_indexer::metrics::{Lags, Metrics};
use testkit::clients::traffic::Written;

use crate::view::millis;
use crate::watch::{Comparison, Record, Unexpected, transitions};

/// The state after everything had stopped.
pub(crate) struct Ending {
    pub(crate) elapsed: Duration,
    pub(crate) waited: Duration,
    pub(crate) settled: bool,
    pub(crate) comparison: Comparison,
    pub(crate) unexpected: Vec<Unexpected>,
    pub(crate) explanations: Vec<String>,
    pub(crate) counts: [i64; 3],
    pub(crate) record: Record,
}

/// See the module.
pub(crate) struct Report {
    pub(crate) ending: Ending,
    pub(crate) metrics: Metrics,
    pub(crate) written: Arc<Written>,
    pub(crate) seed: u64,
}

impl Report {
    pub(crate) fn exit(&self) -> Exit {
        let differs =
            !self.ending.comparison.drift.is_empty() || !self.ending.unexpected.is_empty();
        match (differs, self.ending.settled) {
            (true, _) => Exit::Failure,
            (false, false) => Exit::Unknown,
            (false, true) => Exit::Success,
        }
    }

    pub(crate) fn to_text(&self) -> String {
        let mut text = String::from("\n");
        for (name, value) in self.rows() {
            let _ = writeln!(text, "{name:<13}{value}");
        }
        if !self.ending.settled {
            let _ = writeln!(
                text,
                "\nThe column did not settle within {} s; {} rows were still pending.",
                self.ending.waited.as_secs(),
                self.ending.comparison.pending
            );
        }
        for run in &self.ending.unexpected {
            let (key, stored, expected) = (&run.key, &run.stored, run.expected);
            let _ = writeln!(text, "\n{key} is {stored}; its client expects {expected}");
        }
        for explanation in &self.ending.explanations {
            let _ = writeln!(text, "\n{explanation}");
        }
        text.truncate(text.trim_end().len());
        text
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let [running, completed, failed] = self.ending.counts;
        let ending = &self.ending;
        let event_lag = Lags::of(&self.metrics.event_lag_seconds);
        let sweep_lag = Lags::of(&self.metrics.sweep_lag_seconds);
        vec![
            (
                "demo",
                format!(
                    "{:.1} s of traffic, settled after {:.1} s more, seed {}",
                    ending.elapsed.as_secs_f64(),
                    ending.waited.as_secs_f64(),
                    self.seed
                ),
            ),
            ("clients", self.clients()),
            (
                "passes",
                format!(
                    "{} runs compared by the reconciler, {} found with drift",
                    self.metrics.reconciled_total.get(),
                    self.metrics.counted_drift()
                ),
            ),
            (
                "indexer",
                format!(
                    "{} events, {} statuses written",
                    self.metrics.events_total.get(),
                    transitions(&self.metrics)
                ),
            ),
            ("event lag", lags(&event_lag)),
            ("sweep lag", lags(&sweep_lag)),
            (
                "meanwhile",
                format!(
                    "{} comparisons; at most {} rows pending and {} with drift at once",
                    ending.record.comparisons, ending.record.most_pending, ending.record.most_drift
                ),
            ),
            (
                "in the end",
                format!("{running} running, {completed} completed, {failed} failed"),
            ),
            (
                "expected",
                format!(
                    "{} of {} finished runs have the status that their clients expect",
                    self.written.finished().len() - ending.unexpected.len(),
                    self.written.finished().len()
                ),
            ),
            (
                "drift",
                format!(
                    "{} of {} rows differ from the definition",
                    ending.comparison.drift.len(),
                    ending.comparison.compared
                ),
            ),
        ]
    }

    fn clients(&self) -> String {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let written = &self.written;
        format!(
            "{} runs, {} heartbeats, {} tag changes ({} retried)\n\
             {:<13}{} metadata rows ({} written twice, {} malformed)",
            count(&written.runs),
            count(&written.heartbeats),
            count(&written.tags),
            count(&written.conflicts),
            "",
            count(&written.metadata),
            count(&written.duplicates),
            count(&written.malformed),
        )
    }
}

fn lags(lags: &Lags) -> String {
    format!(
        "p50 {}, p99 {}, of {}",
        millis(lags.quantile(0.5)),
        millis(lags.quantile(0.99)),
        lags.count()
    )
}
