//! Shortcuts for the tests of the parameters: each resolves a connection string without an environment.

use std::time::Duration;

use super::{Params, ParamsSource};

pub(super) const LIMIT: Duration = Duration::from_secs(7);

pub(super) fn source(dsn: &str) -> ParamsSource {
    ParamsSource::dsn(dsn.into(), LIMIT)
}

pub(super) fn params(dsn: &str) -> Params {
    let resolved = source(dsn).resolve(&|_| None);
    resolved.unwrap_or_else(|error| panic!("{dsn}: {error}"))
}

pub(super) fn problem(dsn: &str) -> String {
    let refused = source(dsn).resolve(&|_| None);
    crate::error::chain(&refused.expect_err(dsn))
}
