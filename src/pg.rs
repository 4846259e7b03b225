//! The connection to the database: parameters, TLS, sessions, the pool, and one call for every
//! statement.
//!
//! Contains nothing about runs. The stages call the database only through [`Db`], which limits the
//! time of each call and counts its errors. The LISTEN connection is opened by
//! `Connector::connect_bare`, because a pool drives its connections itself and would swallow the
//! notifications.

mod certificate;
mod connect;
mod dsn;
mod logins;
mod mode;
mod names;
mod pair;
mod params;
mod passfile;
mod pool;
mod service;
mod session;
mod timeouts;
mod tls;

use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use crate::error::Error;

pub use connect::{ConnectError, Connector};
pub(crate) use connect::{Place, Survey, Traffic, drive};
pub use logins::Logins;
pub use mode::detect_mode;
pub(crate) use names::{CHANNEL, LEADER_LOCK, LOCK_CLASS, MIGRATION_LOCK, RELEASED};
pub(crate) use pair::{Mark, check_listen, check_sessions};
pub(crate) use params::PasswordOrigin;
pub use params::{ParamsError, ParamsSource};
pub use pool::{Db, Param};
pub(crate) use pool::{Pool, PooledClient, connect_error, pool_of};
pub use session::{SessionMode, SessionProfile};
pub(crate) use timeouts::{CONNECT_TIMEOUT, LONG, SHORT};
pub use tls::TlsError;
pub(crate) use tls::{Peer, TlsMode};

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

/// A column of an answer, by name.
///
/// # Errors
/// If it is missing or has another type.
pub(crate) fn column<'a, T: FromSql<'a>>(
    row: &'a Row,
    statement: &'static str,
    name: &str,
) -> Result<T, Error> {
    row.try_get(name).map_err(|source| Error::Answer {
        statement,
        source: source.into(),
    })
}
