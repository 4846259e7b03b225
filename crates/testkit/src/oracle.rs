//! A second implementation of a run's status, in plain Rust, to check the SQL against.
//!
//! Shares no code with the product: it follows the text of the definition, and PostgreSQL's own
//! rules for reading a boolean. Promises a status for any evidence. Takes all metadata rows of a
//! run and selects the relevant ones itself. Called by the tests of the definition and by
//! [`crate::history`].

use std::fmt;

use serde_json::Value as Json;

/// Microseconds in a second: the resolution of PostgreSQL's clock.
pub const MICROS: i128 = 1_000_000;

/// The status of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// It sends heartbeats, or its end step is being retried.
    Running,
    /// Its end step succeeded.
    Completed,
    /// Its end step failed, or its heartbeats stopped.
    Failed,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 3] = [Self::Running, Self::Completed, Self::Failed];

    /// The text that is stored in the column.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The rule that decides a status; the first that holds, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The end step failed, and a newer attempt of it has started.
    Retrying,
    /// The end step's newest attempt succeeded.
    EndSucceeded,
    /// The end step's newest attempt failed.
    EndFailed,
    /// The last heartbeat is within the cutoff of the clock, on either side.
    Heartbeat,
    /// The last heartbeat is further from the clock than the cutoff.
    HeartbeatLost,
    /// The run never had a heartbeat.
    NoHeartbeat,
}

impl Reason {
    /// The rule's name in SQL, logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retrying => "retrying",
            Self::EndSucceeded => "end_succeeded",
            Self::EndFailed => "end_failed",
            Self::Heartbeat => "heartbeat",
            Self::HeartbeatLost => "heartbeat_lost",
            Self::NoHeartbeat => "no_heartbeat",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a metadata row's column `value` holds, by the type that the column has.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `text`, as upstream creates it.
    Text(String),
    /// `jsonb`.
    Json(Json),
}

/// One row of `metadata_v3` of the run.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its primary key, in the order of insertion.
    pub id: i64,
    /// The step's name.
    pub step_name: String,
    /// The task of that step.
    pub task_id: i64,
    /// The field's name: `attempt`, `attempt_ok`, ...
    pub field_name: String,
    /// The field's value.
    pub value: Value,
    /// `ts_epoch`, milliseconds.
    pub ts_ms: i64,
}

/// The evidence of one run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evidence {
    /// All of its metadata, in any order.
    pub rows: Vec<Row>,
    /// `last_heartbeat_ts`, seconds since the epoch.
    pub heartbeat_secs: Option<i64>,
}

/// The status of a run by the definition, and the rule that decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The status.
    pub status: Status,
    /// The rule that decides it.
    pub reason: Reason,
    /// When the run ended, milliseconds; wider than a bigint, because a heartbeat in seconds may be
    /// as large as one.
    pub finished_at_ms: Option<i128>,
}

impl Evidence {
    /// The expected status at an instant of the database's clock, in microseconds since the epoch.
    #[must_use]
    pub fn evaluate(&self, now_micros: i128, cutoff_secs: i64) -> Expected {
        let newest_ok = self.newest("attempt_ok");
        let ok = newest_ok.and_then(|row| row.value.as_boolean().map(|value| (value, row.ts_ms)));
        match ok {
            Some((true, ts_ms)) => expected(Reason::EndSucceeded, Some(ts_ms.into())),
            Some((false, ts_ms)) => {
                let retried = self
                    .newest("attempt")
                    .is_some_and(|attempt| attempt.ts_ms > ts_ms);
                if retried {
                    expected(Reason::Retrying, None)
                } else {
                    expected(Reason::EndFailed, Some(ts_ms.into()))
                }
            }
            None => self.evaluate_heartbeat(now_micros, cutoff_secs),
        }
    }

    fn evaluate_heartbeat(&self, now_micros: i128, cutoff_secs: i64) -> Expected {
        let Some(heartbeat) = self.heartbeat_secs.map(i128::from) else {
            return expected(Reason::NoHeartbeat, None);
        };
        let distance = (now_micros - heartbeat * MICROS).abs();
        if distance <= i128::from(cutoff_secs) * MICROS {
            expected(Reason::Heartbeat, None)
        } else {
            expected(Reason::HeartbeatLost, Some(heartbeat * 1000))
        }
    }

    /// The newest row of a field of the end step, of any task; the higher id where times are equal.
    #[must_use]
    pub fn newest(&self, field: &str) -> Option<&Row> {
        let mut newest: Option<&Row> = None;
        for row in &self.rows {
            if row.step_name != "end" || row.field_name != field {
                continue;
            }
            let newer = newest.is_none_or(|other| (row.ts_ms, row.id) > (other.ts_ms, other.id));
            if newer {
                newest = Some(row);
            }
        }
        newest
    }

    /// Whether the value of the newest `attempt_ok` is not a boolean; it then counts as missing.
    #[must_use]
    pub fn is_malformed(&self) -> bool {
        self.newest("attempt_ok")
            .is_some_and(|row| row.value.as_boolean().is_none())
    }
}

impl Value {
    /// As text: a jsonb value is unwrapped, so that `["True"]` and `"True"` both give `True`.
    #[must_use]
    pub fn as_text(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::Json(Json::Array(elements)) => elements.first().and_then(json_text),
            Self::Json(Json::Object(_)) => None,
            Self::Json(scalar) => json_text(scalar),
        }
    }

    fn as_boolean(&self) -> Option<bool> {
        self.as_text().and_then(|text| read_boolean(&text))
    }
}

impl fmt::Display for Value {
    /// The value as it is written into the column, which may have either type.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Json(json) => json.fmt(f),
        }
    }
}

fn json_text(json: &Json) -> Option<String> {
    match json {
        Json::Null => None,
        Json::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// Reads a boolean as PostgreSQL does: any part of a word that begins only words of one meaning,
/// in any case of ASCII, with ASCII white space around it.
#[must_use]
pub fn read_boolean(text: &str) -> Option<bool> {
    const WORDS: [(&str, bool); 6] = [
        ("true", true),
        ("false", false),
        ("yes", true),
        ("no", false),
        ("on", true),
        ("off", false),
    ];
    let blank = |c| matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r');
    let text = text.trim_matches(blank).to_ascii_lowercase();
    match text.as_str() {
        "" => None,
        "1" => Some(true),
        "0" => Some(false),
        beginning => {
            let mut meanings = WORDS
                .iter()
                .filter(|(word, _)| word.starts_with(beginning))
                .map(|(_, meaning)| *meaning);
            let meaning = meanings.next()?;
            meanings.next().is_none().then_some(meaning)
        }
    }
}

fn expected(reason: Reason, finished_at_ms: Option<i128>) -> Expected {
    let status = match reason {
        Reason::Retrying | Reason::Heartbeat => Status::Running,
        Reason::EndSucceeded => Status::Completed,
        Reason::EndFailed | Reason::HeartbeatLost | Reason::NoHeartbeat => Status::Failed,
    };
    Expected {
        status,
        reason,
        finished_at_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_read_by_the_rules_of_postgresql() {
        for text in "t tr tru true T TRUE y ye yes on 1".split(' ') {
            assert_eq!(read_boolean(text), Some(true), "{text}");
        }
        for text in "f fa fal fals false False n no of off 0".split(' ') {
            assert_eq!(read_boolean(text), Some(false), "{text}");
        }
        for text in [
            "",
            " ",
            "o",
            "2",
            "truee",
            "\"True\"",
            "t rue",
            "\u{a0}true",
        ] {
            assert_eq!(read_boolean(text), None, "{text:?}");
        }
        assert_eq!(read_boolean(" \t\n\x0b\x0c\rTrue\r\x0c"), Some(true));
    }
}
