//! The complete list of a flow's runs, streamed.
//!
//! The list is read in chunks, each by its own statement, which begins after the last run of the
//! chunk before. So a slow client holds neither a connection nor a snapshot of the database. A chunk
//! has a limited size in bytes, and all chunks that wait for their clients share one budget
//! ([`super::budget`]): the memory of all lists together is bounded, however large the runs are. A
//! run's position in the order never changes, so each run is in the list once.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures_util::stream::try_unfold;
use tokio::time::timeout;

use super::admission::WhenFull;
use super::budget::Share;
use super::cursor::Cursor;
use super::error::ApiError;
use super::filter::Filter;
use super::selection::{Coverage, Selection};
use super::statement::Memory;
use super::{Api, json, run_row};

/// Bytes for the chunks of all lists.
pub(super) const BUDGET: usize = 16 * 1024 * 1024;

/// Bytes of a chunk, apart from its last run.
const CHUNK: usize = 512 * 1024;

/// Runs of the first chunk, when their size is not known yet.
const FIRST_ROWS: usize = 64;
/// Runs of a chunk at most.
const MAX_ROWS: usize = 1000;
/// How many times as many runs as the chunk before a chunk may have.
const GROWTH: usize = 4;

/// How long a new list waits for a share of the budget.
const SHARE_WAIT: Duration = Duration::from_secs(5);
/// How long a list in progress waits for one.
const CHUNK_WAIT: Duration = Duration::from_secs(60);
/// Attempts at a chunk once the answer has begun.
const ATTEMPTS: u32 = 3;

/// The rest of a list that is being sent.
struct Rest {
    api: Arc<Api>,
    flow_id: String,
    next: Position,
}

/// Where a chunk begins.
#[derive(Debug, Clone, Copy)]
struct Position {
    /// The last run sent; none at the start of the list.
    after: Option<Cursor>,
    offset: i64,
    /// How many runs to read.
    rows: usize,
}

/// A part of the list.
struct Chunk {
    /// Its runs in JSON, with commas between them.
    content: Vec<u8>,
    share: Share,
    /// The next chunk; none after the last one.
    next: Option<Position>,
}

/// Answers with all runs of the flow.
pub(super) async fn complete_list(
    api: &Arc<Api>,
    flow_id: String,
    offset: i64,
) -> Result<Response, ApiError> {
    let start = Position {
        after: None,
        offset,
        rows: FIRST_ROWS,
    };
    // Read before the answer begins, while the status code can still report an error.
    let share = timeout(SHARE_WAIT, api.lists.share(CHUNK)).await;
    let share = share.map_err(|_| ApiError::slow_clients())?;
    let mut first = chunk(api, WhenFull::Reject, &flow_id, start, share).await?;
    first.content.insert(0, b'[');
    let Some(next) = first.next else {
        first.content.push(b']');
        return Ok(json(first.share.hold(first.content)));
    };
    let rest = Rest {
        api: Arc::clone(api),
        flow_id,
        next,
    };
    let start = (Some(first.share.hold(first.content)), Some(rest));
    let body = try_unfold(start, |(ready, rest)| async move {
        match (ready, rest) {
            (Some(bytes), rest) => Ok(Some((bytes, (None, rest)))),
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
        let mut chunk = self.read().await?;
        // Without a run after all, only the end of the list follows.
        if !chunk.content.is_empty() {
            chunk.content.insert(0, b',');
        }
        if chunk.next.is_none() {
            chunk.content.push(b']');
        }
        let rest = chunk.next.map(|next| Self { next, ..self });
        Ok((chunk.share.hold(chunk.content), rest))
    }

    async fn read(&self) -> Result<Chunk, io::Error> {
        let stop = &self.api.stop;
        let mut attempt = 1;
        loop {
            let share = timeout(CHUNK_WAIT, self.api.lists.share(CHUNK));
            let share = stop.run_until_cancelled(share).await;
            let share = share
                .ok_or_else(|| io::Error::other("the daemon is stopping"))?
                .map_err(|_| io::Error::other("other answers take all the memory"))?;
            match chunk(&self.api, WhenFull::Wait, &self.flow_id, self.next, share).await {
                Ok(chunk) => return Ok(chunk),
                Err(_) if attempt < ATTEMPTS => attempt += 1,
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

/// Reads one chunk.
async fn chunk(
    api: &Api,
    when_full: WhenFull,
    flow_id: &str,
    start: Position,
    mut share: Share,
) -> Result<Chunk, ApiError> {
    let reader = api.reader()?;
    loop {
        let selection = Selection {
            flow_id,
            filter: &Filter::default(),
            cursor: start.after,
            offset: start.offset,
            rows: i64::try_from(start.rows).expect("a chunk has at most 1,000 runs"),
            coverage: Coverage::All,
        };
        let mut statement = selection.statement();
        statement.memory = Memory::AtMost(CHUNK);
        let rows = reader.query(when_full, &statement).await?;
        let bytes = run_row::size(flow_id, &rows);
        // A single run may be larger than a chunk. It needs a share of its size, which must not be
        // awaited while its bytes are held.
        if bytes > share.bytes() + CHUNK && !api.lists.is_whole(&share) {
            drop((rows, share));
            let waited = timeout(CHUNK_WAIT, api.lists.share(bytes)).await;
            share = waited.map_err(|_| ApiError::slow_clients())?;
            continue;
        }
        let runs = run_row::read(&rows, false)?;
        // Room for the brackets or the comma as well.
        let mut content = Vec::with_capacity(bytes + 2);
        run_row::write(flow_id, &runs, &mut content);
        let last = runs.last().map(|run| run.position);
        let next = last
            .filter(|_| rows.len() >= start.rows || bytes >= CHUNK)
            .map(|last| Position {
                after: Some(last),
                offset: 0,
                rows: next_rows(rows.len(), bytes),
            });
        return Ok(Chunk {
            content,
            share,
            next,
        });
    }
}

/// How many runs to read next, after so many of so many bytes in all.
fn next_rows(rows: usize, bytes: usize) -> usize {
    let fitting = CHUNK / (bytes / rows.max(1)).max(1);
    fitting.min(GROWTH * rows).clamp(1, MAX_ROWS)
}

#[cfg(test)]
mod tests {
    use super::{CHUNK, next_rows};

    #[test]
    fn the_number_of_rows_follows_their_size() {
        assert_eq!(next_rows(64, 64 * 300), 256);
        assert_eq!(next_rows(256, 256 * 300), 1000);
        assert_eq!(next_rows(1000, 1000 * 300), 1000);
        assert_eq!(next_rows(20, 20 * 25_000), 20);
        assert_eq!(next_rows(1, 10 * CHUNK), 1);
        assert_eq!(next_rows(1, 25_000), 4);
    }
}
