//! The parameters of a request for runs: the filter, and a page or the complete list.

use super::cursor::Cursor;
use super::error::ApiError;
use super::filter::Filter;
use super::params::{Params, integer};

/// Runs of a page by default.
pub(super) const DEFAULT_LIMIT: i64 = 50;
/// Runs of a page at most.
pub(super) const MAX_LIMIT: i64 = 500;
/// The largest offset: a page's rows can be added to it without an overflow.
const MAX_OFFSET: i64 = i64::MAX - 2_000;

/// The parameters of a request for runs.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) filter: Filter,
    pub(super) cursor: Option<Cursor>,
    pub(super) offset: i64,
    /// None for the complete list.
    pub(super) limit: Option<i64>,
}

impl Listing {
    /// Reads the parameters of a query.
    pub(super) fn read(params: &Params) -> Result<Self, ApiError> {
        let filter = Filter::read(params)?;
        // A parameter with an empty value counts as given, but its default holds.
        let filled = |name| params.first(name).filter(|text| !text.is_empty());
        let cursor = filled("_cursor").map(Cursor::decode).transpose()?;
        let limit = filled("_limit").map(|text| natural("_limit", text));
        let limit = limit.transpose()?.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT);
        let offset = filled("_offset").map(|text| natural("_offset", text));
        let offset = offset.transpose()?;
        if cursor.is_some() && offset.is_some() {
            return Err(ApiError::bad_request(
                "_offset cannot be combined with _cursor",
            ));
        }
        let paginated = !filter.is_empty()
            || params.first("_limit").is_some()
            || params.first("_cursor").is_some();
        Ok(Self {
            filter,
            cursor,
            offset: offset.unwrap_or(0).min(MAX_OFFSET),
            limit: paginated.then_some(limit),
        })
    }
}

fn natural(name: &str, text: &str) -> Result<i64, ApiError> {
    integer(text).filter(|number| *number >= 0).ok_or_else(|| {
        ApiError::bad_request(format!(
            "invalid {name}: expected a non-negative integer, got '{text}'"
        ))
    })
}
