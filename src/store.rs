//! The calls into the database, one file a concern.
//!
//! Statuses are changed by `status_indexer.apply` alone; `drain` reaches it through the queue.

pub mod apply;
pub mod queue;
pub mod runs;
pub mod state;

use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use crate::error::Error;

/// A column of an answer, by its name.
fn column<'a, T: FromSql<'a>>(
    row: &'a Row,
    statement: &'static str,
    name: &str,
) -> Result<T, Error> {
    row.try_get(name).map_err(|source| Error::Answer {
        statement,
        source: source.into(),
    })
}

/// A jsonb column of an answer, read into a list; null is an empty one.
fn list<T: serde::de::DeserializeOwned>(
    row: &Row,
    statement: &'static str,
    name: &str,
) -> Result<Vec<T>, Error> {
    let value: Option<tokio_postgres::types::Json<Vec<T>>> = column(row, statement, name)?;
    Ok(value.map_or_else(Vec::new, |json| json.0))
}
