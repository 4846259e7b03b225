//! The log of the demo: while a view is drawn, its lines become part of the view.
//!
//! Owns the last lines of the log. While a view is open it shows them; otherwise they go to
//! standard error as text. Without a terminal nothing is drawn, and warnings are logged as by the
//! product, except those about malformed evidence, which the demo writes on purpose. Called by
//! `main` and [`crate::view`].

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::{Map, Value};

use status_indexer::telemetry::{self, LogFormat};

/// Without a terminal: warnings and errors.
const PLAIN: &str = "warn,status_indexer::store::apply=error";

/// In the view: also the daemon's work, including each status written. The migration's steps and
/// the daemon's start are logged before there is a view.
const SHOWN: &str = "info,status_indexer::store::apply=debug,status_indexer::migrate=warn,\
                     status_indexer::daemon=warn,status_indexer::daemon::listener=info,\
                     status_indexer::daemon::reconciler=info";

const KEPT: usize = 50;

/// The panel of this process.
static PANEL: OnceLock<Panel> = OnceLock::new();

/// The last lines of the log.
#[derive(Debug, Default)]
pub(crate) struct Panel {
    open: AtomicBool,
    lines: Mutex<VecDeque<String>>,
}

/// Starts logging, with the given filter if there is one; call once, before the demo runs.
///
/// # Errors
/// If the filter cannot be read.
pub(crate) fn start(format: LogFormat, filter: Option<&str>) -> anyhow::Result<()> {
    if format != LogFormat::Auto || !is_terminal() {
        return telemetry::start(format, filter.unwrap_or(PLAIN));
    }
    telemetry::start_into(|| Event(panel()), filter.unwrap_or(SHOWN))
}

/// Whether there is a terminal to draw on.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

pub(crate) fn panel() -> &'static Panel {
    PANEL.get_or_init(Panel::default)
}

impl Panel {
    pub(crate) fn open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
    }

    /// The last `count` lines, oldest first.
    pub(crate) fn last(&self, count: usize) -> Vec<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines
            .iter()
            .skip(lines.len().saturating_sub(count))
            .cloned()
            .collect()
    }

    fn take(&self, line: String) {
        if !self.open.load(Ordering::Relaxed) {
            // Without standard error the line is lost.
            let _ = writeln!(io::stderr(), "{line}");
            return;
        }
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

/// A writer for one event, which the formatter writes as one JSON object.
struct Event(&'static Panel);

impl Write for Event {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.take(describe(&String::from_utf8_lossy(bytes)));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Formats a log line in JSON as a line for people.
fn describe(line: &str) -> String {
    let Ok(Value::Object(fields)) = serde_json::from_str(line) else {
        return line.trim_end().to_owned();
    };
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    // 2026-01-31T12:34:56.789Z
    let clock = text("timestamp").get(11..19).unwrap_or_default();
    if text("message") == "status written" {
        let run = fields.get("run.run_number").unwrap_or(&Value::Null);
        let run = format!("{}/{run}", text("run.flow_id"));
        return format!(
            "{clock}  {run:<18} {} → {}  ({})",
            text("from"),
            text("to"),
            text("reason")
        );
    }
    let level = match text("level") {
        "INFO" | "" => String::new(),
        level => format!("{level} "),
    };
    format!("{clock}  {level}{}{}", text("message"), details(&fields))
}

fn details(fields: &Map<String, Value>) -> String {
    let known = ["timestamp", "level", "target", "message"];
    let others = fields
        .iter()
        .filter(|(name, _)| !known.contains(&name.as_str()));
    others
        .map(|(name, value)| match value {
            Value::String(text) => format!(" {name}={text}"),
            value => format!(" {name}={value}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_status_is_shown_as_a_transition() {
        let line = r#"{"timestamp":"2026-01-31T12:34:56.789Z","level":"DEBUG","message":"status written","run.flow_id":"F","run.run_number":7,"from":"running","to":"failed","reason":"end_failed"}"#;
        assert_eq!(
            describe(line),
            "12:34:56  F/7                running → failed  (end_failed)"
        );
    }

    #[test]
    fn other_lines_keep_their_fields() {
        let line = r#"{"timestamp":"2026-01-31T12:34:56.789Z","level":"WARN","message":"m","target":"t","a":1,"b":"x"}"#;
        assert_eq!(describe(line), "12:34:56  WARN m a=1 b=x");
        assert_eq!(describe("no json\n"), "no json");
    }
}
