//! The calls into the database, one file for each concern.
//!
//! [`Store`] holds the pool and the batch size; each method is in the same file as its SQL. Only
//! `status_indexer.apply` changes statuses; `drain` calls it for the runs in the queue. Called by the
//! stages, the scans and the commands.

mod apply;
mod batch;
mod bounds;
mod explain;
mod queue;
mod runs;
mod state;

use tokio_postgres::Row;

use crate::error::Error;
use crate::metrics::Metrics;
use crate::pg::{Connector, Db, SessionMode, SessionProfile, column};

pub use apply::{Applied, Change, InvalidEvidence, RefusedRun};
pub use batch::{BatchSize, MAX_BATCH};
pub use bounds::{Mark, Publication};
pub(crate) use explain::{EXPLAIN, decode as decode_explanation};
pub use explain::{Evidence, EvidenceRow, Explanation, explain};
pub(crate) use queue::queue_depth;
pub use queue::{Drained, QueueRows};
pub use runs::{Compared, DEADLINE_SLACK, Detail, Difference, Due, Explained};
pub(crate) use state::INVALIDATE;
pub use state::{DEFINITION_VERSION, Obstacle, ObstacleKind, State};

/// The calls into the database, with the batch size that they share.
#[derive(Debug, Clone)]
pub struct Store {
    db: Db,
    batch: BatchSize,
}

impl Store {
    /// Calls over this pool, with batches of at most [`MAX_BATCH`] runs.
    #[must_use]
    pub fn new(db: Db) -> Self {
        Self {
            db,
            batch: BatchSize::up_to(MAX_BATCH),
        }
    }

    /// For a backfill at full speed, which pays one commit and one flush a batch: larger batches.
    #[must_use]
    pub fn for_backfill(connector: &Connector, mode: SessionMode, size: usize) -> Self {
        Self {
            db: Db::new(connector, mode, size, SessionProfile::Bulk, Metrics::new()),
            batch: BatchSize::up_to(BatchSize::MAX_BULK),
        }
    }

    /// The pool.
    #[must_use]
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// How many runs one call may evaluate.
    #[must_use]
    pub fn batch(&self) -> &BatchSize {
        &self.batch
    }
}

/// A JSON column of an answer, read into a list; null is an empty list.
fn list<T: serde::de::DeserializeOwned>(
    row: &Row,
    statement: &'static str,
    name: &str,
) -> Result<Vec<T>, Error> {
    let value: Option<tokio_postgres::types::Json<Vec<T>>> = column(row, statement, name)?;
    Ok(value.map_or_else(Vec::new, |json| json.0))
}
