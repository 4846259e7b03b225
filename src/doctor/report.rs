//! What the checks have found, as text and as JSON.

use serde::Serialize;
use serde_json::{Value, json};

use crate::version;

/// The version of the shape of the JSON. It increases if a field is removed or changes its meaning.
const SHAPE: u32 = 1;

/// The state of what a check has found, from the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it must be.
    Ok,
    /// The check was not done, or the role cannot see the answer.
    Unknown,
    /// Statuses are right and in time, and something may change that.
    Warning,
    /// Statuses are wrong, late or not readable, or the database is in danger.
    Problem,
}

impl State {
    const ALL: [Self; 4] = [Self::Problem, Self::Warning, Self::Unknown, Self::Ok];

    /// Its name, in text and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// What one check has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// How it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do; none if nothing has to be done.
    pub advice: Option<String>,
}

impl Outcome {
    pub(super) fn ok(found: impl Into<String>) -> Self {
        Self {
            state: State::Ok,
            found: found.into(),
            advice: None,
        }
    }

    pub(super) fn warning(found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::bad(State::Warning, found, advice)
    }

    pub(super) fn problem(found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::bad(State::Problem, found, advice)
    }

    pub(super) fn unknown(found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::bad(State::Unknown, found, advice)
    }

    pub(super) fn not_done(reason: &str) -> Self {
        Self {
            state: State::Unknown,
            found: format!("not done: {reason}"),
            advice: None,
        }
    }

    pub(super) fn bad(state: State, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            state,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }
}

/// An outcome, and the check that it is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The name of the check.
    pub check: &'static str,
    /// What was found.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// All findings, in the order of the checks.
#[derive(Debug, Default)]
pub struct Report(Vec<Finding>);

impl Report {
    pub(super) fn add(&mut self, check: &'static str, outcome: Outcome) {
        self.0.push(Finding { check, outcome });
    }

    pub(super) fn contains(&self, check: &str) -> bool {
        self.0.iter().any(|finding| finding.check == check)
    }

    /// The worst state. What is unknown is not worse than what is well.
    #[must_use]
    pub fn state(&self) -> State {
        let states = self.0.iter().map(|finding| finding.outcome.state);
        match states.max() {
            Some(worst) if worst > State::Unknown => worst,
            _ => State::Ok,
        }
    }

    fn count(&self, state: State) -> usize {
        let of_state = |finding: &&Finding| finding.outcome.state == state;
        self.0.iter().filter(of_state).count()
    }

    /// One line for each finding, then one with their numbers.
    #[must_use]
    pub fn to_text(&self) -> String {
        let width = self.0.iter().map(|finding| finding.check.len()).max();
        let width = width.unwrap_or_default();
        let mut lines: Vec<String> = Vec::new();
        for Finding { check, outcome } in &self.0 {
            let state = outcome.state.name();
            // What a server or a resolver says may have several lines.
            let found = outcome.found.replace('\n', " ");
            let advice = outcome.advice.as_ref();
            let advice = advice.map_or_else(String::new, |advice| format!(": {advice}"));
            lines.push(format!("{state:<8} {check:<width$}  {found}{advice}"));
        }
        let counts = State::ALL.map(|state| format!("{} {}", self.count(state), state.name()));
        lines.push(counts.join(", "));
        lines.join("\n")
    }

    /// The same as one JSON object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "shape": SHAPE,
            "version": version::VERSION,
            "commit": version::COMMIT,
            "state": self.state(),
            "counts": {
                "ok": self.count(State::Ok),
                "unknown": self.count(State::Unknown),
                "warning": self.count(State::Warning),
                "problem": self.count(State::Problem),
            },
            "findings": self.0,
        })
    }
}
