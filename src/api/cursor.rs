//! Where a page ends: the last row's place in the order, as an opaque text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::error::ApiError;
use super::params::integer;

/// A place in the order `ts_epoch desc, run_number desc`, which no change of a run moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The run's creation, milliseconds since the epoch.
    pub(super) ts_epoch: i64,
    /// The run's number, also where it has an id of its own.
    pub(super) run_number: i64,
}

impl Cursor {
    /// The text that upstream writes for the same place.
    pub(super) fn encode(self) -> String {
        STANDARD.encode(format!(
            r#"{{"ts_epoch": {}, "run_number": {}}}"#,
            self.ts_epoch, self.run_number
        ))
    }

    /// Reads what [`Self::encode`] or upstream wrote.
    pub(super) fn decode(text: &str) -> Result<Self, ApiError> {
        Self::try_decode(text).ok_or_else(|| ApiError::bad("Invalid cursor"))
    }

    fn try_decode(text: &str) -> Option<Self> {
        let json = STANDARD.decode(text).ok()?;
        let value: Value = serde_json::from_slice(&json).ok()?;
        let number = |name: &str| match value.get(name)? {
            Value::Number(number) => number.as_i64(),
            // Upstream reads numbers in quotes too.
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
    fn a_cursor_comes_back_and_is_written_as_upstream_writes_it() {
        let cursor = Cursor {
            ts_epoch: 300,
            run_number: 4,
        };
        let text = cursor.encode();
        assert_eq!(text, "eyJ0c19lcG9jaCI6IDMwMCwgInJ1bl9udW1iZXIiOiA0fQ==");
        assert_eq!(Cursor::decode(&text).ok(), Some(cursor));
    }

    #[test]
    fn anything_else_is_refused() {
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
