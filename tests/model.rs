//! What a status is, a second time: the definition in plain Rust, for tests to hold the SQL against.
//!
//! Owns nothing of the indexer and shares no line with it: written from the words of the definition,
//! with PostgreSQL's own rules for reading a boolean. Promises an answer for any evidence. Sees all
//! metadata rows of a run, also those that must not count, and chooses itself.

use std::fmt;

use serde_json::Value as Json;
use status_indexer::status::{Reason, Status};

/// Microseconds in a second: the finest that PostgreSQL's clock tells.
pub(crate) const MICROS: i128 = 1_000_000;

/// What stands in a metadata row's `value`, by the type that the site gave the column.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Json(Json),
}

/// One row of `metadata_v3`, of the run in question.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) id: i64,
    pub(crate) step_name: String,
    pub(crate) task_id: i64,
    pub(crate) field_name: String,
    pub(crate) value: Value,
    pub(crate) ts_ms: i64,
}

/// All that is known of one run.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Evidence {
    pub(crate) rows: Vec<Row>,
    pub(crate) heartbeat_secs: Option<i64>,
}

/// What the definition says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) status: Status,
    pub(crate) reason: Reason,
    /// Milliseconds; wider than a bigint, because a heartbeat in seconds may be one.
    pub(crate) finished_at_ms: Option<i128>,
}

impl Evidence {
    /// The verdict at an instant of the database's clock, in microseconds since the epoch.
    pub(crate) fn judge(&self, now_micros: i128, cutoff_secs: i64) -> Verdict {
        let newest_ok = self.newest("attempt_ok");
        let ok = newest_ok.and_then(|row| row.value.as_boolean().map(|value| (value, row.ts_ms)));
        match ok {
            Some((true, ts_ms)) => verdict(Reason::EndSucceeded, Some(ts_ms.into())),
            Some((false, ts_ms)) => {
                let retried = self
                    .newest("attempt")
                    .is_some_and(|attempt| attempt.ts_ms > ts_ms);
                if retried {
                    verdict(Reason::Retrying, None)
                } else {
                    verdict(Reason::EndFailed, Some(ts_ms.into()))
                }
            }
            None => self.judge_by_heartbeat(now_micros, cutoff_secs),
        }
    }

    fn judge_by_heartbeat(&self, now_micros: i128, cutoff_secs: i64) -> Verdict {
        let Some(heartbeat) = self.heartbeat_secs.map(i128::from) else {
            return verdict(Reason::NoHeartbeat, None);
        };
        let distance = (now_micros - heartbeat * MICROS).abs();
        if distance <= i128::from(cutoff_secs) * MICROS {
            verdict(Reason::Heartbeat, None)
        } else {
            verdict(Reason::HeartbeatLost, Some(heartbeat * 1000))
        }
    }

    /// The newest row of a field of the end step, of any task; the higher id where times are equal.
    pub(crate) fn newest(&self, field: &str) -> Option<&Row> {
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

    /// Whether the newest `attempt_ok` has a value that is no boolean, and so counts as none.
    pub(crate) fn is_malformed(&self) -> bool {
        self.newest("attempt_ok")
            .is_some_and(|row| row.value.as_boolean().is_none())
    }
}

impl Value {
    /// As text: a jsonb value is unwrapped, so that `["True"]` and `"True"` both say `True`.
    pub(crate) fn as_text(&self) -> Option<String> {
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
    /// As it is written into the column, whose type may be either.
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
pub(crate) fn read_boolean(text: &str) -> Option<bool> {
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

fn verdict(reason: Reason, finished_at_ms: Option<i128>) -> Verdict {
    let status = match reason {
        Reason::Retrying | Reason::Heartbeat => Status::Running,
        Reason::EndSucceeded => Status::Completed,
        Reason::EndFailed | Reason::HeartbeatLost | Reason::NoHeartbeat => Status::Failed,
    };
    Verdict {
        status,
        reason,
        finished_at_ms,
    }
}

#[test]
fn a_boolean_is_read_by_postgresqls_rules() {
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
