//! `GET /flows/{flow_id}/runs`: a page of a flow's runs, or all of them.
//!
//! The whole list is read in pieces, each by a statement of its own that begins where the last one
//! ended. So a client that reads slowly holds neither a connection nor a snapshot of the database,
//! and a flow of any size takes the memory of one piece. A run's place in the order never changes,
//! so each run is in the list once.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response};
use futures_util::stream::try_unfold;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};

use super::cursor::Cursor;
use super::error::ApiError;
use super::filter::Filter;
use super::params::{Params, integer};
use super::reader::{Patience, Reader};
use super::statement::Selection;
use super::{Api, api_error};

/// Rows of a page unless asked for otherwise.
pub(super) const DEFAULT_LIMIT: i64 = 50;
/// Rows of a page at most.
pub(super) const MAX_LIMIT: i64 = 500;
/// Rows of a piece of the whole list.
const PIECE: i64 = 1000;
/// How often a piece is tried for, once the answer has begun.
const PIECE_ATTEMPTS: u32 = 3;

/// What was asked for.
#[derive(Debug)]
struct Listing {
    filter: Filter,
    cursor: Option<Cursor>,
    offset: i64,
    /// None for the whole list.
    limit: Option<i64>,
}

impl Listing {
    fn read(params: &Params) -> Result<Self, ApiError> {
        let filter = Filter::read(params)?;
        // An empty value is given, and says nothing.
        let filled = |name| params.first(name).filter(|text| !text.is_empty());
        let cursor = filled("_cursor").map(Cursor::decode).transpose()?;
        let limit = filled("_limit").map(|text| natural("_limit", text));
        let limit = limit.transpose()?.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT);
        let offset = filled("_offset").map(|text| natural("_offset", text));
        let offset = offset.transpose()?;
        if cursor.is_some() && offset.is_some() {
            return Err(ApiError::bad("_offset does not go together with _cursor"));
        }
        let paginated = !filter.is_empty()
            || params.first("_limit").is_some()
            || params.first("_cursor").is_some();
        Ok(Self {
            filter,
            cursor,
            // Room for the rows of a page beyond it.
            offset: offset.unwrap_or(0).min(i64::MAX - 2 * PIECE),
            limit: paginated.then_some(limit),
        })
    }
}

fn natural(name: &str, text: &str) -> Result<i64, ApiError> {
    integer(text).filter(|number| *number >= 0).ok_or_else(|| {
        ApiError::bad(format!(
            "invalid {name}: expected a non-negative integer, got '{text}'"
        ))
    })
}

/// Answers.
pub(super) async fn list(
    api: &Arc<Api>,
    flow_id: String,
    query: &str,
) -> Result<Response<Body>, ApiError> {
    let listing = Listing::read(&Params::read(query)?)?;
    match listing.limit {
        Some(limit) => page(api.reader()?, &flow_id, &listing, limit).await,
        None => whole(api, flow_id, listing.offset).await,
    }
}

async fn page(
    reader: &Reader,
    flow_id: &str,
    listing: &Listing,
    limit: i64,
) -> Result<Response<Body>, ApiError> {
    let selection = Selection {
        flow_id,
        filter: &listing.filter,
        cursor: listing.cursor,
        offset: listing.offset,
        // One more, to see whether there is a next page.
        rows: limit + 1,
    };
    let rows = reader
        .query(Patience::Short, |table| selection.statement(table))
        .await
        .map_err(api_error)?;
    let with_status = listing.filter.statuses.is_some();
    if with_status && !rows.first().is_some_and(valid) {
        return Err(ApiError::unavailable(
            "statuses cannot be told yet: the first pass over all runs is not complete",
        ));
    }
    let mut runs = Runs::read(flow_id, &rows, with_status)?;
    let more = usize::try_from(limit).is_ok_and(|limit| runs.cut(limit));
    let mut body = Vec::with_capacity(rows.len() * 512);
    body.push(b'[');
    runs.write(&mut body)?;
    body.push(b']');
    let mut response = json(Body::from(body));
    let headers = response.headers_mut();
    headers.insert("x-limit", limit.into());
    if more && let Some(last) = runs.last() {
        let text = HeaderValue::try_from(last.encode()).expect("base64 is visible ASCII");
        headers.insert("x-next-cursor", text);
    }
    Ok(response)
}

fn valid(row: &Row) -> bool {
    row.try_get(0).unwrap_or(false)
}

fn json(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The list that is being written: what to read next, if anything.
struct Rest {
    api: Arc<Api>,
    flow_id: String,
    /// The last run written.
    after: Cursor,
}

async fn whole(api: &Arc<Api>, flow_id: String, offset: i64) -> Result<Response<Body>, ApiError> {
    // Read before the answer begins, so that an error can still be told.
    let reader = api.reader()?;
    let (mut first, after) = piece(reader, Patience::Short, &flow_id, None, offset).await?;
    first.insert(0, b'[');
    let Some(after) = after else {
        first.push(b']');
        return Ok(json(Body::from(first)));
    };
    let rest = Rest {
        api: Arc::clone(api),
        flow_id,
        after,
    };
    let start = (Some(first), Some(rest));
    let body = try_unfold(start, |(ready, rest)| async move {
        match (ready, rest) {
            (Some(bytes), rest) => Ok(Some((Bytes::from(bytes), (None, rest)))),
            (None, None) => Ok(None),
            (None, Some(rest)) => rest
                .next()
                .await
                .map(|(bytes, rest)| Some((bytes, (None, rest)))),
        }
    });
    Ok(json(Body::from_stream(body)))
}

impl Rest {
    /// The next piece. An error breaks the answer off, which its reader sees: it lacks its end.
    async fn next(self) -> Result<(Bytes, Option<Self>), std::io::Error> {
        let mut attempt = 1;
        let (mut bytes, after) = loop {
            if self.api.stop.is_cancelled() {
                return Err(std::io::Error::other("the daemon is stopping"));
            }
            let reader = self
                .api
                .reader()
                .map_err(|_| std::io::Error::other("no reader"))?;
            let cursor = Some(self.after);
            match piece(reader, Patience::Long, &self.flow_id, cursor, 0).await {
                Ok(found) => break found,
                Err(_) if attempt < PIECE_ATTEMPTS => attempt += 1,
                Err(_) => {
                    tracing::warn!(run.flow_id = self.flow_id, "a list of runs was broken off");
                    return Err(std::io::Error::other("the database does not answer"));
                }
            }
        };
        if !bytes.is_empty() {
            bytes.insert(0, b',');
        }
        let rest = match after {
            Some(after) => Some(Self { after, ..self }),
            None => {
                bytes.push(b']');
                None
            }
        };
        Ok((bytes.into(), rest))
    }
}

/// A piece of the whole list, and where the next one begins.
async fn piece(
    reader: &Reader,
    patience: Patience,
    flow_id: &str,
    cursor: Option<Cursor>,
    offset: i64,
) -> Result<(Vec<u8>, Option<Cursor>), ApiError> {
    let selection = Selection {
        flow_id,
        filter: &Filter::default(),
        cursor,
        offset,
        rows: PIECE,
    };
    let rows = reader
        .query(patience, |table| selection.statement(table))
        .await
        .map_err(api_error)?;
    let runs = Runs::read(flow_id, &rows, false)?;
    let mut bytes = Vec::with_capacity(rows.len() * 512 + 2);
    runs.write(&mut bytes)?;
    let full = i64::try_from(rows.len()).is_ok_and(|count| count >= PIECE);
    Ok((bytes, runs.last().filter(|_| full)))
}

/// The rows of an answer, each with its place in the order.
struct Runs<'a> {
    flow_id: &'a str,
    rows: Vec<(Cursor, &'a Row)>,
    /// Where the columns of the runs begin, and whether the status is among them.
    first: usize,
    with_status: bool,
}

impl<'a> Runs<'a> {
    fn read(flow_id: &'a str, rows: &'a [Row], with_status: bool) -> Result<Self, ApiError> {
        let first = usize::from(with_status);
        let mut placed = Vec::with_capacity(rows.len());
        for row in rows {
            // A row of nulls tells that the column is valid and that no run passes.
            let number: Option<i32> = row.try_get(first).map_err(unexpected)?;
            if let Some(number) = number {
                let place = Cursor {
                    ts_epoch: row.try_get(first + 3).map_err(unexpected)?,
                    run_number: number.into(),
                };
                placed.push((place, row));
            }
        }
        // They come ordered, from an ordered part of the statement; only its end promises it.
        let key = |place: &Cursor| std::cmp::Reverse((place.ts_epoch, place.run_number));
        if !placed.is_sorted_by_key(|(place, _)| key(place)) {
            placed.sort_by_key(|(place, _)| key(place));
        }
        Ok(Self {
            flow_id,
            rows: placed,
            first,
            with_status,
        })
    }

    /// Leaves `limit` runs; true where there were more.
    fn cut(&mut self, limit: usize) -> bool {
        let more = self.rows.len() > limit;
        self.rows.truncate(limit);
        more
    }

    fn last(&self) -> Option<Cursor> {
        self.rows.last().map(|(place, _)| *place)
    }

    /// Writes them as JSON, with commas between.
    fn write(&self, out: &mut Vec<u8>) -> Result<(), ApiError> {
        // All of them begin alike.
        let mut start = b"{\"flow_id\":".to_vec();
        text(&mut start, Some(self.flow_id));
        start.extend_from_slice(b",\"run_number\":");
        for (at, (place, row)) in self.rows.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            out.extend_from_slice(&start);
            self.write_run(out, *place, row).map_err(unexpected)?;
        }
        Ok(())
    }

    /// The rest of a run, from the value of its number on.
    fn write_run(
        &self,
        out: &mut Vec<u8>,
        place: Cursor,
        row: &Row,
    ) -> Result<(), tokio_postgres::Error> {
        let at = |column: usize| self.first + column;
        let user_name: Option<&str> = row.try_get(at(2))?;
        match row.try_get::<_, Option<&str>>(at(1))? {
            Some(run_id) => text(out, Some(run_id)),
            None => number(out, Some(place.run_number)),
        }
        out.extend_from_slice(b",\"user_name\":");
        text(out, user_name);
        out.extend_from_slice(b",\"ts_epoch\":");
        number(out, Some(place.ts_epoch));
        for (name, column) in [(&b",\"tags\":"[..], 5), (b",\"system_tags\":", 6)] {
            out.extend_from_slice(name);
            let json: Option<RawJson<'_>> = row.try_get(at(column))?;
            out.extend_from_slice(json.map_or(b"null", |json| json.0));
        }
        out.extend_from_slice(b",\"last_heartbeat_ts\":");
        number(out, row.try_get(at(4))?);
        if self.with_status {
            out.extend_from_slice(b",\"status\":");
            text(out, row.try_get(at(8))?);
        }
        if row.try_get::<_, Option<bool>>(at(7))? == Some(true) {
            out.extend_from_slice(b",\"user\":");
            text(out, user_name);
        }
        out.push(b'}');
        Ok(())
    }
}

fn unexpected(error: tokio_postgres::Error) -> ApiError {
    tracing::warn!(
        error = crate::error::chain(&error),
        "a run's columns are not of the types that upstream gives them"
    );
    ApiError::unavailable("the runs' table is not as expected")
}

fn text(out: &mut Vec<u8>, value: Option<&str>) {
    serde_json::to_writer(out, &value).expect("writing text to memory does not fail");
}

fn number(out: &mut Vec<u8>, value: Option<i64>) {
    serde_json::to_writer(out, &value).expect("writing a number to memory does not fail");
}

/// The text of a `jsonb` value, as the server sends it: JSON already.
struct RawJson<'a>(&'a [u8]);

impl<'a> FromSql<'a> for RawJson<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        match raw {
            [1, json @ ..] => Ok(Self(json)),
            _ => Err("another version of the binary form of jsonb".into()),
        }
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::JSONB
    }
}
