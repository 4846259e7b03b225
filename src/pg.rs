//! The way to the database: parameters, TLS, sessions, the pool, and one call for every statement.
//!
//! Knows PostgreSQL and nothing of runs. [`Db`] is the only way in for the stages: it times, counts
//! and bounds each call, so that no caller can forget to. The LISTEN connection is opened by
//! `Connector::connect_bare`, because a pool drives its connections itself and would swallow the
//! notifications.

mod dsn;
mod mode;
mod names;
mod pool;
mod session;
mod timeouts;
mod tls;

pub use dsn::{DsnError, split_tls};
pub use mode::detect_mode;
pub(crate) use names::{CHANNEL, LEADER_LOCK, LOCK_CLASS, MIGRATION_LOCK};
pub use pool::{Db, Param};
pub(crate) use pool::{connect_error, pool_of};
pub(crate) use session::Traffic;
pub use session::{Connector, SessionMode, SessionProfile};
pub(crate) use timeouts::{CONNECT_TIMEOUT, LONG, SHORT};
pub use tls::{TlsError, TlsMode, TlsParams};

/// Quotes a name as an SQL identifier.
#[must_use]
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a text as an SQL literal, for statements that take no parameters.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

/// The name of a statement: the comment on its first line.
#[must_use]
pub fn name_of(sql: &'static str) -> &'static str {
    sql.lines()
        .next()
        .and_then(|line| line.strip_prefix("-- "))
        .unwrap_or("statement")
}
