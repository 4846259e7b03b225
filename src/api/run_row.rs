//! A run as the database returns it and as the answer shows it.
//!
//! Owns the columns, their positions in a row, and the JSON of a run. Values are borrowed from the
//! row and written without a copy in between, because a page has up to 500 runs.

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};

use super::cursor::Cursor;
use super::error::ApiError;

/// The columns of a run, in the order of the positions below. The flow is not among them: the
/// request contains it. The casts keep the types of the answer when upstream changes its own.
pub(super) const COLUMNS: &str = "\
r.run_number::bigint as run_number, r.run_id::text as run_id, r.user_name::text as user_name,
       r.ts_epoch::bigint as ts_epoch, r.last_heartbeat_ts::bigint as last_heartbeat_ts, r.tags, r.system_tags,
       r.system_tags ? ('user:' || r.user_name) as owned";

/// The same where a text cannot be sent, because the database's encoding is not UTF8: see
/// `status_indexer.sendable`.
pub(super) const SENDABLE_COLUMNS: &str = "\
r.run_number::bigint as run_number, status_indexer.sendable(r.run_id::text) as run_id,
       status_indexer.sendable(r.user_name::text) as user_name, r.ts_epoch::bigint as ts_epoch,
       r.last_heartbeat_ts::bigint as last_heartbeat_ts, status_indexer.sendable(r.tags::text)::jsonb as tags,
       status_indexer.sendable(r.system_tags::text)::jsonb as system_tags,
       r.system_tags ? ('user:' || r.user_name) as owned";

const RUN_NUMBER: usize = 0;
const RUN_ID: usize = 1;
const USER_NAME: usize = 2;
const TS_EPOCH: usize = 3;
const LAST_HEARTBEAT_TS: usize = 4;
const TAGS: usize = 5;
const SYSTEM_TAGS: usize = 6;
const OWNED: usize = 7;
/// With a status filter only: the status, after [`COLUMNS`].
const STATUS: usize = 8;
/// With a status filter only: whether statuses may be read by this statement.
const READABLE: usize = 9;
/// Of a statement that evaluates pending runs only: how old the data is, seconds; null on a primary.
const REPLICA_AGE: usize = 10;
/// Of a statement that evaluates pending runs only: whether the column would have sufficed.
const COLUMN_SUFFICES: usize = 11;

/// One run, borrowed from its row.
#[derive(Debug)]
pub(super) struct RunRow<'a> {
    /// Its position in the order.
    pub(super) position: Cursor,
    run_id: Option<&'a str>,
    user_name: Option<&'a str>,
    last_heartbeat_ts: Option<i64>,
    tags: Option<RawJson<'a>>,
    system_tags: Option<RawJson<'a>>,
    /// Whether the service itself set the user's name.
    owned: bool,
    /// None where the request does not filter on status.
    status: Option<&'a str>,
}

impl<'a> RunRow<'a> {
    /// Reads a row. None for the row of nulls that stands for an empty page with a status filter.
    pub(super) fn read(
        row: &'a Row,
        with_status: bool,
    ) -> Result<Option<Self>, tokio_postgres::Error> {
        let Some(run_number) = row.try_get::<_, Option<i64>>(RUN_NUMBER)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            position: Cursor {
                ts_epoch: row.try_get(TS_EPOCH)?,
                run_number,
            },
            run_id: row.try_get(RUN_ID)?,
            user_name: row.try_get(USER_NAME)?,
            last_heartbeat_ts: row.try_get(LAST_HEARTBEAT_TS)?,
            tags: row.try_get(TAGS)?,
            system_tags: row.try_get(SYSTEM_TAGS)?,
            owned: row.try_get::<_, Option<bool>>(OWNED)?.unwrap_or(false),
            status: if with_status {
                row.try_get(STATUS)?
            } else {
                None
            },
        }))
    }

    /// Writes the object from the value of `run_number` on.
    fn write(&self, out: &mut Vec<u8>) {
        match self.run_id {
            Some(run_id) => text(out, Some(run_id)),
            None => number(out, Some(self.position.run_number)),
        }
        out.extend_from_slice(b",\"user_name\":");
        text(out, self.user_name);
        out.extend_from_slice(b",\"ts_epoch\":");
        number(out, Some(self.position.ts_epoch));
        out.extend_from_slice(b",\"tags\":");
        raw(out, self.tags.as_ref());
        out.extend_from_slice(b",\"system_tags\":");
        raw(out, self.system_tags.as_ref());
        out.extend_from_slice(b",\"last_heartbeat_ts\":");
        number(out, self.last_heartbeat_ts);
        if self.status.is_some() {
            out.extend_from_slice(b",\"status\":");
            text(out, self.status);
        }
        if self.owned {
            out.extend_from_slice(b",\"user\":");
            text(out, self.user_name);
        }
        out.push(b'}');
    }
}

/// Whether statuses could be read in the statement's snapshot. False without a row.
pub(super) fn is_readable(rows: &[Row]) -> bool {
    holds(rows, READABLE)
}

/// Whether the column would have sufficed. False without a row.
pub(super) fn column_suffices(rows: &[Row]) -> bool {
    holds(rows, COLUMN_SUFFICES)
}

fn holds(rows: &[Row], column: usize) -> bool {
    rows.first()
        .is_some_and(|row| row.try_get(column).unwrap_or(false))
}

/// How old the data of a replica is at most; none on a primary.
pub(super) fn replica_age_secs(rows: &[Row]) -> Option<f64> {
    rows.first()?.try_get(REPLICA_AGE).ok()?
}

/// The size of the rows' JSON in bytes, about: that of the values, the names and the flow.
pub(super) fn size(flow_id: &str, rows: &[Row]) -> usize {
    const NAMES: usize = 160;
    let values: usize = rows.iter().map(Row::raw_size_bytes).sum();
    values + rows.len() * (NAMES + flow_id.len())
}

/// Reads the rows of an answer, newest first.
pub(super) fn read(rows: &[Row], with_status: bool) -> Result<Vec<RunRow<'_>>, ApiError> {
    let runs: Result<Vec<RunRow<'_>>, _> = rows
        .iter()
        .filter_map(|row| RunRow::read(row, with_status).transpose())
        .collect();
    let mut runs = runs.map_err(|error| unexpected(&error))?;
    // The outer select of a status filter has no order by, so the order of its rows is not
    // guaranteed. They are sorted in practice.
    let newest_first =
        |run: &RunRow<'_>| std::cmp::Reverse((run.position.ts_epoch, run.position.run_number));
    if !runs.is_sorted_by_key(newest_first) {
        runs.sort_by_key(newest_first);
    }
    Ok(runs)
}

/// Writes runs of one flow as JSON objects with commas between them.
pub(super) fn write(flow_id: &str, runs: &[RunRow<'_>], out: &mut Vec<u8>) {
    let mut start = b"{\"flow_id\":".to_vec();
    text(&mut start, Some(flow_id));
    start.extend_from_slice(b",\"run_number\":");
    for (at, run) in runs.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&start);
        run.write(out);
    }
}

fn unexpected(error: &tokio_postgres::Error) -> ApiError {
    tracing::warn!(
        error = crate::error::chain(error),
        "a column of the runs' table has an unexpected type"
    );
    ApiError::unavailable("a column of the runs' table has an unexpected type")
}

fn text(out: &mut Vec<u8>, value: Option<&str>) {
    serde_json::to_writer(out, &value).expect("writing text to memory does not fail");
}

fn number(out: &mut Vec<u8>, value: Option<i64>) {
    serde_json::to_writer(out, &value).expect("writing a number to memory does not fail");
}

fn raw(out: &mut Vec<u8>, value: Option<&RawJson<'_>>) {
    out.extend_from_slice(value.map_or(b"null", |json| json.0));
}

/// The text of a `jsonb` value as the server sends it, which is already JSON.
#[derive(Debug)]
struct RawJson<'a>(&'a [u8]);

impl<'a> FromSql<'a> for RawJson<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        match raw {
            [1, json @ ..] => Ok(Self(json)),
            _ => Err("unknown version of jsonb's binary format".into()),
        }
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::JSONB
    }
}
