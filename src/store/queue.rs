//! The queue of runs to be looked at again.

use tokio_postgres::types::Type;

use super::apply::Applied;
use super::column;
use crate::error::Error;
use crate::pg::{Db, SHORT, name_of};
use crate::status::RunKey;

const DRAIN: &str = "\
-- queue.drain
select claimed, last_id, lags, applied, skipped, changes, invalid, next_deadline, held_secs
  from status_indexer.drain($1, $2, $3)";

/// Puts the row at the head of the queue to its end, so that one run that cannot be written does
/// not hold up the others.
const POSTPONE: &str = "\
-- queue.postpone
with head as (
  delete from status_indexer.queue q
   where q.id = any (array(select w.id
                             from status_indexer.queue w
                            order by w.id
                            limit 1
                              for update skip locked))
  returning flow_id, run_number, enqueued_at
)
insert into status_indexer.queue (flow_id, run_number, enqueued_at)
select flow_id, run_number, enqueued_at
  from head
returning flow_id, run_number";

const WAITING: &str = "\
-- queue.waiting
select count(*)::int8 as depth,
       coalesce(extract(epoch from clock_timestamp() - min(enqueued_at)), 0)::float8 as oldest_secs
  from (select enqueued_at
          from status_indexer.queue
         limit 10000) q";

const CLEAR_BEFORE: &str = "\
-- queue.clear_before
select not exists (select
                     from status_indexer.queue
                    where enqueued_at < to_timestamp($1)) as clear";

/// What one claim did.
#[derive(Debug, Default)]
pub struct Drained {
    /// Queue rows asked for.
    pub asked: usize,
    /// Queue rows taken.
    pub claimed: usize,
    /// The highest id taken.
    pub last_id: Option<i64>,
    /// Seconds from each event's writing to the end of the call.
    pub lags_secs: Vec<f64>,
    /// What became of their runs.
    pub outcome: Applied,
}

/// Takes up to `most` rows with an id above `after_id`, but no more than keep the rows of the runs
/// free for others, and applies their runs, in one statement.
/// With `quiet_ms`, writers need not wake the worker for so long.
///
/// # Errors
/// If the call fails; then the rows are still in the queue.
pub async fn drain(
    db: &Db,
    after_id: i64,
    most: usize,
    quiet_ms: Option<i32>,
) -> Result<Drained, Error> {
    let asked = most.min(db.batch().get());
    let batch = i32::try_from(asked).unwrap_or(i32::MAX);
    let row = db
        .query_one(
            DRAIN,
            &[
                (&after_id, Type::INT8),
                (&batch, Type::INT4),
                (&quiet_ms, Type::INT4),
            ],
            SHORT,
        )
        .await?;
    let name = name_of(DRAIN);
    let claimed: i32 = column(&row, name, "claimed")?;
    let claimed = usize::try_from(claimed).unwrap_or(0);
    let outcome = Applied::read(&row, name)?;
    if outcome.applied > 0 {
        db.batch().learn(claimed, outcome.held);
    }
    Ok(Drained {
        asked,
        claimed,
        last_id: column(&row, name, "last_id")?,
        lags_secs: column::<Option<_>>(&row, name, "lags")?.unwrap_or_default(),
        outcome,
    })
}

/// Puts the head of the queue to its end; returns whose row it was.
///
/// # Errors
/// If the call fails.
pub async fn postpone(db: &Db) -> Result<Option<RunKey>, Error> {
    let rows = db.query(POSTPONE, &[], SHORT).await?;
    rows.first()
        .map(|row| {
            Ok(RunKey {
                flow_id: column(row, name_of(POSTPONE), "flow_id")?,
                run_number: column(row, name_of(POSTPONE), "run_number")?,
            })
        })
        .transpose()
}

/// How many rows wait (counted up to 10,000), and the age of the oldest of them, in seconds.
///
/// # Errors
/// If the call fails.
pub async fn waiting(db: &Db) -> Result<(i64, f64), Error> {
    let row = db.query_one(WAITING, &[], SHORT).await?;
    let name = name_of(WAITING);
    Ok((
        column(&row, name, "depth")?,
        column(&row, name, "oldest_secs")?,
    ))
}

/// Whether every event written before `before_secs` (seconds since the epoch) has been applied.
///
/// # Errors
/// If the call fails.
pub async fn clear_before(db: &Db, before_secs: f64) -> Result<bool, Error> {
    let row = db
        .query_one(CLEAR_BEFORE, &[(&before_secs, Type::FLOAT8)], SHORT)
        .await?;
    column(&row, name_of(CLEAR_BEFORE), "clear")
}
