//! The demo's last word: what was written, how fast it was followed, and whether it is right.
//!
//! Owns the exit code. Two questions are asked at a moment of quiet: does each stored status equal
//! the definition, and does each finished run read as its clients must expect, who know no
//! definition. Called by the demo alone.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::traffic::Written;
use super::view::millis;
use super::watch::{Record, Verdict, transitions};
use crate::cli::{EXIT_FAILURE, EXIT_UNKNOWN};
use crate::metrics::{Lags, Metrics};
use crate::status::{RunKey, Status};

/// How it stood when all had stopped.
pub(super) struct Ending {
    pub(super) played: Duration,
    pub(super) waited: Duration,
    pub(super) quiet: bool,
    pub(super) verdict: Verdict,
    pub(super) unexpected: Vec<(RunKey, String, Status)>,
    pub(super) explanations: Vec<String>,
    pub(super) counts: [i64; 3],
    pub(super) record: Record,
}

/// See the module.
pub(super) struct Report {
    pub(super) ending: Ending,
    pub(super) metrics: Metrics,
    pub(super) written: Arc<Written>,
    pub(super) seed: u64,
}

impl Report {
    pub(super) fn exit_code(&self) -> u8 {
        let wrong = !self.ending.verdict.wrong.is_empty() || !self.ending.unexpected.is_empty();
        match (wrong, self.ending.quiet) {
            (true, _) => EXIT_FAILURE,
            (false, false) => EXIT_UNKNOWN,
            (false, true) => 0,
        }
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = String::from("\n");
        for (name, value) in self.rows() {
            let _ = writeln!(text, "{name:<13}{value}");
        }
        if !self.ending.quiet {
            let _ = writeln!(
                text,
                "\nThe column did not come to rest within {} s; {} rows were still in flight.",
                self.ending.waited.as_secs(),
                self.ending.verdict.in_flight
            );
        }
        for (key, stored, expected) in &self.ending.unexpected {
            let _ = writeln!(
                text,
                "\n{key} reads {stored}; its clients expect {expected}"
            );
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
                    "{:.1} s of traffic, quiet after {:.1} s more, seed {}",
                    ending.played.as_secs_f64(),
                    ending.waited.as_secs_f64(),
                    self.seed
                ),
            ),
            ("clients", self.clients()),
            (
                "passes",
                format!(
                    "{} runs compared by passes over all runs, {} found adrift",
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
                "on the way",
                format!(
                    "{} comparisons; at most {} rows in flight and {} wrong at once",
                    ending.record.looks, ending.record.most_in_flight, ending.record.most_wrong
                ),
            ),
            (
                "in the end",
                format!("{running} running, {completed} completed, {failed} failed"),
            ),
            (
                "expected",
                format!(
                    "{} of {} finished runs read as their clients left them",
                    self.written.ended().len() - ending.unexpected.len(),
                    self.written.ended().len()
                ),
            ),
            (
                "wrong rows",
                format!(
                    "{} of {} differ from the definition",
                    ending.verdict.wrong.len(),
                    ending.verdict.compared
                ),
            ),
        ]
    }

    fn clients(&self) -> String {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let written = &self.written;
        format!(
            "{} runs, {} heartbeats, {} tag changes ({} tried again)\n\
             {:<13}{} metadata rows ({} twice, {} malformed)",
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
