//! The way to the database: parameters, TLS, sessions, the pool, and one call for every statement.
//!
//! [`Db`] is the only way in for the stages: it times, counts and bounds each call, so that no
//! caller can forget to. The LISTEN session is a connection of its own ([`Connector::connect`]),
//! because a pool drives its connections itself and would swallow the notifications.

mod batch;
mod dsn;
mod mode;
mod pool;
mod session;
mod tls;

pub use batch::BatchSize;
pub use dsn::{DsnError, split_tls};
pub use mode::detect_mode;
pub use pool::{Db, Param};
pub(crate) use pool::{LONG, SHORT, pool_of};
pub(crate) use session::{CONNECT_TIMEOUT, Traffic, settings};
pub use session::{Connector, Purpose, SessionMode};
pub use tls::{TlsError, TlsMode, TlsParams};

/// A name quoted as an SQL identifier, whatever is in it.
#[must_use]
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text quoted as an SQL literal, for statements that take no parameters.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

/// A statement's name: the comment on its first line.
#[must_use]
pub fn name_of(sql: &'static str) -> &'static str {
    sql.lines()
        .next()
        .and_then(|line| line.strip_prefix("-- "))
        .unwrap_or("statement")
}
