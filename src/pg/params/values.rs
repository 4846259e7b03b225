//! The text of the parameters by name, and its conversion into numbers, durations and words.
//!
//! Names are checked when a value is added, values when they are converted. `source` collects the
//! values; `target`, `tls` and `convert` read them.

use std::path::PathBuf;
use std::time::Duration;

use super::error::{ParamsError, invalid};
use super::keywords::{SUPPORTED, UNSUPPORTED, check_name};
use super::source::Env;
use crate::pg::dsn::Pair;
use crate::pg::service;

/// The values by name. Names are checked when it is made.
#[derive(Debug)]
pub(super) struct Values(Vec<Pair>);

impl Values {
    pub(super) fn new(pairs: Vec<Pair>) -> Result<Self, ParamsError> {
        let mut values = Self(Vec::with_capacity(pairs.len()));
        for (name, value) in pairs {
            let (name, value) = modern(name, value);
            check_name(&name, &value)?;
            values.set(&name, value);
        }
        Ok(values)
    }

    /// Adds what a service and the environment contain and the connection string does not.
    pub(super) fn with_defaults(mut self, env: Env<'_>) -> Result<Self, ParamsError> {
        let given = |name: &str, variable: &str| {
            self.get(name).map(str::to_owned).or_else(|| env(variable))
        };
        if let Some(name) = given("service", "PGSERVICE") {
            let file = given("servicefile", "PGSERVICEFILE").map(PathBuf::from);
            for (name, value) in service::find(&name, file, env)? {
                check_name(&name, &value)?;
                self.add(&name, value);
            }
        }
        for (name, variable) in SUPPORTED.iter().chain(&UNSUPPORTED) {
            let Some(value) = variable.and_then(env) else {
                continue;
            };
            check_name(name, &value)?;
            self.add(name, value);
        }
        Ok(self)
    }

    pub(super) fn set(&mut self, name: &str, value: String) {
        self.take(name);
        self.0.push((name.to_owned(), value));
    }

    fn add(&mut self, name: &str, value: String) {
        if !self.0.iter().any(|(known, _)| known == name) {
            self.0.push((name.to_owned(), value));
        }
    }

    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(at).1)
    }

    /// An empty value counts as unset.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    pub(super) fn owned(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    pub(super) fn integer(&self, name: &'static str) -> Result<Option<i32>, ParamsError> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        match text.trim().parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(invalid(name, "must be an integer")),
        }
    }

    /// A duration; none for zero or less, which stands for the system's default.
    pub(super) fn duration(
        &self,
        name: &'static str,
        unit: fn(u64) -> Duration,
        default: Duration,
    ) -> Result<Option<Duration>, ParamsError> {
        Ok(match self.integer(name)? {
            None => Some(default),
            Some(value) => u64::try_from(value)
                .ok()
                .filter(|value| *value > 0)
                .map(unit),
        })
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &self,
        name: &'static str,
        default: T,
        choices: &[(&str, T)],
    ) -> Result<T, ParamsError> {
        choose(name, self.get(name), default, choices)
    }
}

/// The choice that a word stands for.
pub(super) fn choose<T: Copy>(
    name: &'static str,
    text: Option<&str>,
    default: T,
    choices: &[(&str, T)],
) -> Result<T, ParamsError> {
    let Some(text) = text else {
        return Ok(default);
    };
    if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
        return Ok(*choice);
    }
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    Err(invalid(
        name,
        &format!("must be one of: {}", words.join(", ")),
    ))
}

/// Replaces the keyword that preceded `sslmode` before PostgreSQL 8.0.
fn modern(name: String, value: String) -> Pair {
    if name != "requiressl" {
        return (name, value);
    }
    let mode = if value.starts_with('1') {
        "require"
    } else {
        "prefer"
    };
    ("sslmode".to_owned(), mode.to_owned())
}
