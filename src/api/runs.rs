//! `GET /flows/{flow_id}/runs`: a page of a flow's runs, or all of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderValue;
use axum::response::Response;

use super::admission::WhenFull;
use super::error::ApiError;
use super::listing::Listing;
use super::params::Params;
use super::reader::Rows;
use super::selection::{Coverage, Selection};
use super::statement::Memory;
use super::{Api, REPLICA_AGE, json, replica_age, run_row, stream};

/// Bytes for pages that wait for their clients.
pub(super) const BUDGET: usize = 32 * 1024 * 1024;

/// Answers a request for runs.
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Path(flow_id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let params = Params::read(query.as_deref().unwrap_or_default())?;
    let listing = Listing::read(&params)?;
    match listing.limit {
        Some(limit) => page(&api, &flow_id, &listing, limit).await,
        None => stream::complete_list(&api, flow_id, listing.offset).await,
    }
}

async fn page(
    api: &Api,
    flow_id: &str,
    listing: &Listing,
    limit: i64,
) -> Result<Response, ApiError> {
    let selection = Selection {
        flow_id,
        filter: &listing.filter,
        cursor: listing.cursor,
        offset: listing.offset,
        // One more, which shows whether there is a next page.
        rows: limit + 1,
        coverage: Coverage::All,
    };
    let rows = read(api, selection).await?;
    let with_status = listing.filter.statuses.is_some();
    if with_status && !run_row::is_readable(&rows) {
        return Err(ApiError::unavailable(
            "statuses are not available yet: the backfill is not complete",
        ));
    }
    let mut runs = run_row::read(&rows, with_status)?;
    let size = usize::try_from(limit).expect("a limit is from 0 to 500");
    let more = runs.len() > size;
    runs.truncate(size);
    let bytes = run_row::size(flow_id, &rows) + 2;
    if rows.bytes() + bytes > api.pages.total() {
        return Err(ApiError::too_large(api.pages.total() / 2));
    }
    // Not awaited, because the rows hold their own share meanwhile.
    let share = api.pages.try_share(bytes);
    let share = share.ok_or_else(ApiError::slow_clients)?;
    let mut body = Vec::with_capacity(bytes);
    body.push(b'[');
    run_row::write(flow_id, &runs, &mut body);
    body.push(b']');
    let mut response = json(share.hold(body));
    let headers = response.headers_mut();
    if with_status && let Some(age) = run_row::replica_age_secs(&rows) {
        headers.insert(REPLICA_AGE, replica_age(age));
    }
    headers.insert("x-limit", limit.into());
    if more && let Some(last) = runs.last() {
        let cursor = HeaderValue::try_from(last.position.encode());
        headers.insert("x-next-cursor", cursor.expect("base64 is visible ASCII"));
    }
    Ok(response)
}

/// Reads the page. With a status filter the cheaper statement is sent first. If the column does not
/// suffice, the other one follows, and is sent first from then on, until the column suffices again.
async fn read(api: &Api, mut selection: Selection<'_>) -> Result<Rows, ApiError> {
    let reader = api.reader()?;
    let query = async |selection: &Selection<'_>| {
        let mut statement = selection.statement();
        statement.memory = Memory::Budget(api.pages.clone());
        reader.query(WhenFull::Reject, &statement).await
    };
    if selection.filter.statuses.is_none() {
        return query(&selection).await;
    }
    if api.column_suffices.load(Ordering::Relaxed) {
        selection.coverage = Coverage::ExactColumn;
        let rows = query(&selection).await?;
        if run_row::is_readable(&rows) {
            return Ok(rows);
        }
    }
    selection.coverage = Coverage::All;
    let rows = query(&selection).await?;
    let suffices = run_row::column_suffices(&rows);
    api.column_suffices.store(suffices, Ordering::Relaxed);
    Ok(rows)
}
