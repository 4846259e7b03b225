//! The queue of runs to be evaluated again.

use tokio_postgres::types::Type;

use super::{Applied, Store, column};
use crate::error::Error;
use crate::pg::{SHORT, name_of};
use crate::status::RunKey;

const DRAIN: &str = "\
-- queue.drain
select claimed, last_id, lags, applied, skipped, changes, invalid, next_deadline, held_secs
  from status_indexer.drain($1, $2, $3)";

/// Moves the first row of the queue to its end, so that one run that cannot be written does not
/// block the others.
const REQUEUE_LAST: &str = "\
-- queue.requeue_last
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

const DEPTH: &str = "\
-- queue.depth
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

/// The outcome of one call of `drain`.
#[derive(Debug, Default)]
pub struct Drained {
    /// Queue rows requested.
    pub requested: usize,
    /// Queue rows taken.
    pub claimed: usize,
    /// The highest id taken.
    pub last_id: Option<i64>,
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
}

impl Store {
    /// Takes up to `max` rows with an id above `after_id`, or fewer if more would hold the row
    /// locks of the runs for too long, and applies their runs, in one statement. With
    /// `suppress_ms`, writers send no notification for that time.
    ///
    /// # Errors
    /// If the call fails; the rows are still in the queue then.
    pub async fn drain(
        &self,
        after_id: i64,
        max: usize,
        suppress_ms: Option<i32>,
    ) -> Result<Drained, Error> {
        let requested = max.min(self.batch.get());
        let batch = i32::try_from(requested).unwrap_or(i32::MAX);
        let params = [
            (&after_id as _, Type::INT8),
            (&batch as _, Type::INT4),
            (&suppress_ms as _, Type::INT4),
        ];
        let row = self.db.query_one(DRAIN, &params, SHORT).await?;
        let name = name_of(DRAIN);
        let claimed: i32 = column(&row, name, "claimed")?;
        let claimed = usize::try_from(claimed).unwrap_or(0);
        let applied = Applied::read(&row, name)?;
        if applied.applied > 0 {
            self.batch.learn(claimed, applied.held);
        }
        Ok(Drained {
            requested,
            claimed,
            last_id: column(&row, name, "last_id")?,
            lags_secs: column::<Option<_>>(&row, name, "lags")?.unwrap_or_default(),
            applied,
        })
    }

    /// Moves the first row of the queue to its end; returns the row's run.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn requeue_last(&self) -> Result<Option<RunKey>, Error> {
        let rows = self.db.query(REQUEUE_LAST, &[], SHORT).await?;
        rows.first()
            .map(|row| {
                Ok(RunKey {
                    flow_id: column(row, name_of(REQUEUE_LAST), "flow_id")?,
                    run_number: column(row, name_of(REQUEUE_LAST), "run_number")?,
                })
            })
            .transpose()
    }

    /// The number of rows in the queue (counted up to 10,000), and the age of the oldest of them in
    /// seconds.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn queue_depth(&self) -> Result<(i64, f64), Error> {
        let row = self.db.query_one(DEPTH, &[], SHORT).await?;
        let name = name_of(DEPTH);
        Ok((
            column(&row, name, "depth")?,
            column(&row, name, "oldest_secs")?,
        ))
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
