//! The cursor of a page: its last run's position in the order, as an opaque text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::error::ApiError;
use super::params::integer;

/// A position in the order `ts_epoch desc, run_number desc`. It never changes for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The run's creation, milliseconds since the epoch.
    pub(super) ts_epoch: i64,
    /// The run's number, even if the run has a `run_id`.
    pub(super) run_number: i64,
}

impl Cursor {
    /// Writes the same text as upstream.
    pub(super) fn encode(self) -> String {
        STANDARD.encode(format!(
            r#"{{"ts_epoch": {}, "run_number": {}}}"#,
            self.ts_epoch, self.run_number
        ))
    }

    /// Reads a text written by [`Self::encode`] or by upstream.
    pub(super) fn decode(text: &str) -> Result<Self, ApiError> {
        Self::try_decode(text).ok_or_else(|| ApiError::bad_request("Invalid cursor"))
    }

    fn try_decode(text: &str) -> Option<Self> {
        let json = STANDARD.decode(text).ok()?;
        let value: Value = serde_json::from_slice(&json).ok()?;
        let number = |name: &str| match value.get(name)? {
            Value::Number(number) => number.as_i64(),
            // Upstream accepts numbers in quotes too.
            Value::String(text) => integer(text),
            _ => None,
        };
        Some(Self {
            ts_epoch: number("ts_epoch")?,
            run_number: number("run_number")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_written_as_upstream_writes_it_and_read_back() {
        let cursor = Cursor {
            ts_epoch: 300,
            run_number: 4,
        };
        let text = cursor.encode();
        assert_eq!(text, "eyJ0c19lcG9jaCI6IDMwMCwgInJ1bl9udW1iZXIiOiA0fQ==");
        assert_eq!(Cursor::decode(&text).ok(), Some(cursor));
    }

    #[test]
    fn any_other_text_is_rejected() {
        let jsons = [
            "",
            "[]",
            "3",
            "{}",
            r#"{"ts_epoch": 1}"#,
            r#"{"ts_epoch": null, "run_number": 1}"#,
            r#"{"ts_epoch": 99999999999999999999, "run_number": 1}"#,
            r#"{"ts_epoch": 1.5, "run_number": 1}"#,
            r#"{"ts_epoch": "x", "run_number": 1}"#,
            r#"{"ts_epoch": 1, "run_number": 1"#,
        ];
        for json in jsons {
            assert!(Cursor::decode(&STANDARD.encode(json)).is_err(), "{json}");
        }
        for text in [
            "zzz",
            "{}",
            "eyJ0c19lcG9jaCI6IDMwMCwgInJ1bl9udW1iZXIiOiA0fQ",
            "é",
        ] {
            assert!(Cursor::decode(text).is_err(), "{text}");
        }
    }
}
