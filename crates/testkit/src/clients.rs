//! Simulated clients of Metaflow's metadata service.
//!
//! [`scenario`] decides what each run's client writes and when, [`service`] has the statements that
//! the metadata service sends, [`traffic`] runs many clients at once. Called by the demo.

pub mod scenario;
pub mod service;
pub mod traffic;

use std::error::Error as _;
use std::io;

/// Whether a statement failed because the server is unavailable, stopping or starting: the same
/// statement succeeds later.
#[must_use]
pub fn is_connection_lost(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        // Connection exceptions, operator intervention.
        Some(code) => ["08", "57"].contains(&&code.code()[..2]),
        None => error.is_closed() || error.source().is_some_and(|cause| cause.is::<io::Error>()),
    }
}
