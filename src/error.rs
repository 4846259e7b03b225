//! What can go wrong between the daemon and the database, and what to do about each.
//!
//! Whether trying again can help is decided here and nowhere else, by SQLSTATE.

use std::time::Duration;

use tokio_postgres::error::SqlState;

/// A call into the database that did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server answered with an error, or the connection broke.
    #[error("{statement} failed")]
    Postgres {
        /// The statement's name: the first line of its SQL.
        statement: &'static str,
        /// What the server or the connection said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// No connection could be had.
    #[error("cannot connect to the database")]
    Connect(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No answer within the deadline; the connection is given up.
    #[error("{statement} had no answer within {after:?}")]
    Timeout {
        /// The statement's name.
        statement: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The answer was not of the expected form: another version's schema.
    #[error("{statement} answered in an unexpected form")]
    Answer {
        /// The statement's name.
        statement: &'static str,
        /// What did not fit.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The daemon was told to stop; the call was not made, or given up.
    #[error("the daemon is stopping")]
    Stopping,
}

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// The database is away, busy or failing over: the same call works later.
    Retry,
    /// The indexer's objects are not (all) there: `migrate up` brings them.
    Migrate,
    /// The role lacks a privilege, or may not log in: an operator must grant it.
    Grant,
    /// None of these: the call itself is refused. A smaller one may pass.
    Refused,
}

impl Error {
    /// The server's code, where the server answered.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&SqlState> {
        match self {
            Self::Postgres { source, .. } => source.code(),
            Self::Connect(source) => source
                .downcast_ref::<tokio_postgres::Error>()
                .and_then(tokio_postgres::Error::code),
            Self::Timeout { .. } | Self::Answer { .. } | Self::Stopping => None,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> Remedy {
        let Some(code) = self.sqlstate() else {
            return match self {
                Self::Answer { .. } => Remedy::Migrate,
                _ => Remedy::Retry,
            };
        };
        remedy_of(code)
    }

    /// True where a lock on a table or row could not be had in time.
    #[must_use]
    pub fn is_lock_timeout(&self) -> bool {
        self.sqlstate() == Some(&SqlState::LOCK_NOT_AVAILABLE)
    }
}

/// What to do about the server's code.
#[must_use]
pub fn remedy_of(code: &SqlState) -> Remedy {
    match code.code() {
        // Undefined table, function, column, schema or object.
        "42P01" | "42883" | "42703" | "3F000" | "42704" => Remedy::Migrate,
        "42501" => Remedy::Grant,
        // Read-only transaction: a primary that became a standby. Lock and statement
        // timeouts, serialization failures, deadlocks.
        "25006" | "55P03" | "57014" | "40001" | "40P01" | "3D000" => Remedy::Retry,
        other => match &other[..2] {
            "28" => Remedy::Grant,
            // Connection exceptions, insufficient resources, operator intervention, system errors.
            "08" | "53" | "57" | "58" => Remedy::Retry,
            _ => Remedy::Refused,
        },
    }
}

/// The whole chain of causes on one line: `tokio_postgres` alone prints only `db error`.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text.replace('\n', " ")
}
