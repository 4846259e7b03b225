//! The queue of runs to be evaluated again.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::{Applied, Store, column};
use crate::error::Error;
use crate::pg::{LONG, SHORT, name_of};

const DRAIN: &str = "\
-- queue.drain
select claimed, last_id, kept_ids, lags, applied, jsonb_array_length(skipped) as skipped, changes, invalid,
       next_deadline, held_secs, refused
  from status_indexer.drain($1, $2, $3, $4, $5)";

const ENQUEUE_NOT_SENDABLE: &str = "\
-- queue.enqueue_not_sendable
select status_indexer.enqueue_all_not_sendable()";

/// From the first row on, in the order of the index: an old snapshot keeps all earlier rows in the table.
const DEPTH: &str = "\
-- queue.depth
select count(*)::int8 as depth,
       coalesce(extract(epoch from clock_timestamp() - min(enqueued_at)), 0)::float8 as oldest_secs
  from (select enqueued_at
          from status_indexer.queue
         where id >= (select first_queue_id from status_indexer.state)
         order by id
         limit 10000) q";

const CLEAR_BEFORE: &str = "\
-- queue.clear_before
select not exists (select
                     from status_indexer.queue
                    where id >= (select first_queue_id from status_indexer.state)
                      and enqueued_at < to_timestamp($1)) as clear";

/// Which rows of the queue a call of `drain` takes, in the order of their ids.
#[derive(Debug, Clone, Default)]
pub struct QueueRows {
    /// Rows with a higher id than this.
    pub after_id: i64,
    /// Except these.
    pub except_ids: Vec<i64>,
}

/// The outcome of one call of `drain`.
#[derive(Debug, Default)]
pub struct Drained {
    /// Queue rows requested.
    pub requested: usize,
    /// Queue rows taken.
    pub claimed: usize,
    /// The highest id taken.
    pub last_id: Option<i64>,
    /// The taken rows that stay in the queue: their runs are locked, or the server refuses them.
    pub kept_ids: Vec<i64>,
    /// Seconds from each event's writing to the end of the call.
    pub lags_secs: Vec<f64>,
    /// The outcome for their runs.
    pub applied: Applied,
}

impl Drained {
    /// Whether there may be more rows: as many were taken as were requested.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.claimed >= self.requested
    }

    /// Queue rows that were taken and are done.
    #[must_use]
    pub fn done(&self) -> usize {
        self.claimed.saturating_sub(self.kept_ids.len())
    }
}

impl Store {
    /// Takes up to `max` rows of `rows`, or fewer if more would hold the row locks of the runs for
    /// too long, and applies their runs, in one statement. With `suppress_ms`, writers send no
    /// notification for that time.
    ///
    /// # Errors
    /// If the call fails; the rows are still in the queue then.
    pub async fn drain(
        &self,
        rows: &QueueRows,
        max: usize,
        suppress_ms: Option<i32>,
    ) -> Result<Drained, Error> {
        match self.drain_rows(rows, max, suppress_ms, false).await {
            Err(error) if error.may_concern_one_run() => {
                self.drain_rows(rows, max, suppress_ms, true).await
            }
            drained => drained,
        }
    }

    async fn drain_rows(
        &self,
        rows: &QueueRows,
        max: usize,
        suppress_ms: Option<i32>,
        each: bool,
    ) -> Result<Drained, Error> {
        let requested = max.min(self.batch.get());
        let batch = i32::try_from(requested).unwrap_or(i32::MAX);
        let params = [
            (&rows.after_id as _, Type::INT8),
            (&batch as _, Type::INT4),
            (&suppress_ms as _, Type::INT4),
            (&rows.except_ids as _, Type::INT8_ARRAY),
            (&each as _, Type::BOOL),
        ];
        let row = self.db.query_one(DRAIN, &params, SHORT).await?;
        let name = name_of(DRAIN);
        let claimed: i32 = column(&row, name, "claimed")?;
        let claimed = usize::try_from(claimed).unwrap_or(0);
        let drained = Drained {
            requested,
            claimed,
            last_id: column(&row, name, "last_id")?,
            kept_ids: column::<Option<_>>(&row, name, "kept_ids")?.unwrap_or_default(),
            lags_secs: column::<Option<_>>(&row, name, "lags")?.unwrap_or_default(),
            applied: Applied::read(&row, name)?,
        };
        // A batch of nothing but locked runs costs little: a large one is right for it.
        if !each && claimed > 0 {
            let taken = if drained.done() > 0 {
                drained.done()
            } else {
                claimed
            };
            self.batch.learn(taken, drained.applied.held);
        }
        Ok(drained)
    }

    /// Puts the runs that scans leave out into the queue: those of flows whose names the server cannot
    /// send, in a database whose encoding is not UTF8.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn enqueue_not_sendable(&self) -> Result<(), Error> {
        let rows = self.db.query(ENQUEUE_NOT_SENDABLE, &[], LONG).await;
        rows.map(drop)
    }

    /// The number of rows in the queue (counted up to 10,000), and the age of the oldest of them in
    /// seconds.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn queue_depth(&self) -> Result<(i64, f64), Error> {
        read_depth(&self.db.query_one(DEPTH, &[], SHORT).await?)
    }

    /// Whether every event written before `before_secs` (seconds since the epoch) has been applied.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn queue_is_clear_before(&self, before_secs: f64) -> Result<bool, Error> {
        let params = [(&before_secs as _, Type::FLOAT8)];
        let row = self.db.query_one(CLEAR_BEFORE, &params, SHORT).await?;
        column(&row, name_of(CLEAR_BEFORE), "clear")
    }
}

/// The same as [`Store::queue_depth`], over a connection of the caller's own.
///
/// # Errors
/// If the call fails.
pub(crate) async fn queue_depth(client: &Client) -> Result<(i64, f64), Error> {
    let row = client.query_typed_one(DEPTH, &[]).await;
    let row = row.map_err(|source| Error::Postgres {
        statement: name_of(DEPTH),
        source,
    })?;
    read_depth(&row)
}

fn read_depth(row: &Row) -> Result<(i64, f64), Error> {
    let name = name_of(DEPTH);
    Ok((
        column(row, name, "depth")?,
        column(row, name, "oldest_secs")?,
    ))
}
