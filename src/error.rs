//! Errors of calls into the database, and what to do about each.
//!
//! Owns the one decision whether a retry can help, by SQLSTATE, and the operator's hint that goes
//! with it. Used by everything that calls the database.

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
        /// The error that the server or the connection reported.
        #[source]
        source: tokio_postgres::Error,
    },
    /// No connection could be opened.
    #[error("cannot connect to the database")]
    Connect(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No answer within the limit; the connection is closed.
    #[error("{statement} got no answer within {after:?}")]
    Timeout {
        /// The statement's name.
        statement: &'static str,
        /// The limit.
        after: Duration,
    },
    /// The answer has an unexpected form: the schema is of another version.
    #[error("{statement} returned an answer of an unexpected form")]
    Answer {
        /// The statement's name.
        statement: &'static str,
        /// What did not fit.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A connection leads to another place than it must: only an operator can correct it.
    #[error("{0}")]
    Misdirected(String),
    /// The daemon is stopping; the call was not made, or was abandoned.
    #[error("the daemon is stopping")]
    Stopping,
}

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// The database is unavailable, busy or failing over: the same call succeeds later.
    Retry,
    /// Objects of the indexer are missing: `migrate up` creates them.
    Migrate,
    /// The role lacks a privilege: an operator must grant it.
    Grant,
    /// The server refuses the login: the same call succeeds when the server, the role or the
    /// password has changed.
    LogIn,
    /// The server refuses the connection for a reason that an operator must change.
    Configure,
    /// The server refuses the statement itself. A smaller one may succeed.
    Refused,
}

impl Remedy {
    /// What an operator should do; none where a retry suffices or no general advice exists.
    #[must_use]
    pub fn hint(self) -> Option<&'static str> {
        match self {
            Self::Migrate => Some(
                "the database has no status indexer of this version: run `status-indexer migrate \
                 up` as the owner of the tables, or start with --migrate",
            ),
            Self::Grant => Some(
                "the role lacks privileges: run `status-indexer migrate up --grant-to ROLE` as the \
                 owner of the tables",
            ),
            Self::LogIn => Some(
                "the server refuses the login: check the role, its password and the server's \
                 pg_hba.conf",
            ),
            Self::Configure => Some(
                "the server refuses the connection: check the parameters of the connection, and the \
                 role's CONNECT privilege on the database",
            ),
            Self::Retry | Self::Refused => None,
        }
    }
}

impl Error {
    /// The server's code, where the server answered.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&SqlState> {
        match self {
            Self::Postgres { source, .. } => source.code(),
            Self::Connect(source) => {
                let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&**source);
                while let Some(error) = cause {
                    if let Some(error) = error.downcast_ref::<tokio_postgres::Error>() {
                        return error.code();
                    }
                    cause = error.source();
                }
                None
            }
            Self::Timeout { .. } | Self::Answer { .. } | Self::Misdirected(_) | Self::Stopping => {
                None
            }
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> Remedy {
        match (self, self.sqlstate()) {
            (Self::Connect(_), Some(code)) => remedy_at_connect(code),
            (_, Some(code)) => remedy_of(code),
            (Self::Answer { .. }, None) => Remedy::Migrate,
            (Self::Misdirected(_), None) => Remedy::Refused,
            (_, None) => Remedy::Retry,
        }
    }

    /// Whether a single run may be the cause, for example through another trigger on its row. The same
    /// code may have a cause that concerns all runs, such as a missing privilege.
    #[must_use]
    pub fn may_concern_one_run(&self) -> bool {
        // Connections, logins, states of the transaction or the server, resources, locks.
        const GENERAL: [&str; 10] = ["08", "25", "28", "3D", "40", "53", "55", "57", "58", "F0"];
        match self {
            Self::Postgres { source, .. } => source
                .code()
                .is_some_and(|code| !GENERAL.contains(&&code.code()[..2])),
            _ => false,
        }
    }

    /// True if a lock on a table or row was not granted in time.
    #[must_use]
    pub fn is_lock_timeout(&self) -> bool {
        self.sqlstate() == Some(&SqlState::LOCK_NOT_AVAILABLE)
    }

    /// True if the server did not answer at all.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Timeout { .. } => true,
            Self::Postgres { source, .. } => source.is_closed(),
            Self::Answer { .. } | Self::Misdirected(_) | Self::Stopping => false,
        }
    }
}

/// What to do about the server's code where it refuses a connection. Poolers and managed servers
/// answer with any code while no server is available, so only a few codes require an operator.
fn remedy_at_connect(code: &SqlState) -> Remedy {
    match &code.code()[..2] {
        "28" => Remedy::LogIn,
        // Values and names in the connection's own parameters; a privilege on the database.
        "22" | "42" => Remedy::Configure,
        _ => Remedy::Retry,
    }
}

/// What to do about the server's code for a statement.
#[must_use]
pub fn remedy_of(code: &SqlState) -> Remedy {
    match code.code() {
        // Undefined table, function, column, schema or object.
        "42P01" | "42883" | "42703" | "3F000" | "42704" => Remedy::Migrate,
        "42501" => Remedy::Grant,
        // Read-only transaction: a primary that became a standby. Lock and statement
        // timeouts, serialization failures, deadlocks, a database that does not exist yet.
        "25006" | "55P03" | "57014" | "40001" | "40P01" | "3D000" => Remedy::Retry,
        other => match &other[..2] {
            "28" => Remedy::LogIn,
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
