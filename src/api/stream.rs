//! The whole list of a flow's runs, streamed.
//!
//! The list is read in chunks, each by its own statement, which begins after the last run of the
//! chunk before. So a slow client holds neither a connection nor a snapshot of the database, and a
//! flow of any size needs the memory of one chunk. A run's position in the order never changes, so
//! each run is in the list once.

use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures_util::stream::try_unfold;

use super::admission::WhenFull;
use super::cursor::Cursor;
use super::error::ApiError;
use super::filter::Filter;
use super::reader::Reader;
use super::selection::Selection;
use super::{Api, json, run_row};

/// Rows of a chunk.
const CHUNK: i64 = 1000;
/// Attempts at a chunk once the answer has begun.
const CHUNK_ATTEMPTS: u32 = 3;

/// The rest of a list that is being sent.
struct Rest {
    api: Arc<Api>,
    flow_id: String,
    /// The last run sent.
    after: Cursor,
}

/// Answers with all runs of the flow.
pub(super) async fn whole_list(
    api: &Arc<Api>,
    flow_id: String,
    offset: i64,
) -> Result<Response, ApiError> {
    // Read before the answer begins, while the status code can still report an error.
    let reader = api.reader()?;
    let (mut first, after) = chunk(reader, WhenFull::Reject, &flow_id, None, offset).await?;
    first.insert(0, b'[');
    let Some(after) = after else {
        first.push(b']');
        return Ok(json(first));
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
    /// The next chunk. After an error the connection is closed without the end of the body, so the
    /// client sees that the list is incomplete.
    async fn next(self) -> Result<(Bytes, Option<Self>), io::Error> {
        let (mut bytes, after) = self.read().await?;
        // Without a run after all, only the end of the list follows.
        if !bytes.is_empty() {
            bytes.insert(0, b',');
        }
        let rest = after.map(|after| Self { after, ..self });
        if rest.is_none() {
            bytes.push(b']');
        }
        Ok((Bytes::from(bytes), rest))
    }

    async fn read(&self) -> Result<(Vec<u8>, Option<Cursor>), io::Error> {
        let mut attempt = 1;
        loop {
            if self.api.stop.is_cancelled() {
                return Err(io::Error::other("the daemon is stopping"));
            }
            let reader = self
                .api
                .reader()
                .map_err(|_| io::Error::other("no reader"))?;
            let cursor = Some(self.after);
            match chunk(reader, WhenFull::Wait, &self.flow_id, cursor, 0).await {
                Ok(found) => return Ok(found),
                Err(_) if attempt < CHUNK_ATTEMPTS => attempt += 1,
                Err(_) => {
                    tracing::warn!(
                        run.flow_id = self.flow_id,
                        "a list of runs was aborted: a read failed"
                    );
                    return Err(io::Error::other("the database does not answer"));
                }
            }
        }
    }
}

/// Reads one chunk: its JSON, and the position of its last run if more may follow.
async fn chunk(
    reader: &Reader,
    when_full: WhenFull,
    flow_id: &str,
    cursor: Option<Cursor>,
    offset: i64,
) -> Result<(Vec<u8>, Option<Cursor>), ApiError> {
    let selection = Selection {
        flow_id,
        filter: &Filter::default(),
        cursor,
        offset,
        rows: CHUNK,
    };
    let statement = selection.statement();
    let rows = reader.query(when_full, &statement).await?;
    let runs = run_row::read(&rows, false)?;
    // Room for the brackets or the comma as well.
    let mut bytes = Vec::with_capacity(rows.len() * 512 + 2);
    run_row::write(flow_id, &runs, &mut bytes);
    let full = i64::try_from(rows.len()).is_ok_and(|count| count >= CHUNK);
    let last = runs.last().map(|run| run.position);
    Ok((bytes, last.filter(|_| full)))
}
