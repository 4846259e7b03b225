//! `status_indexer.publish_read_bounds`: what lets readers of exact statuses skip nearly all work.

use tokio_postgres::types::Type;

use super::{Store, column};
use crate::error::Error;
use crate::pg::{LONG, name_of};

const PUBLISH: &str = "\
-- bounds.publish
select published, until_secs, new_secs, new_xid, new_queue_id
  from status_indexer.publish_read_bounds($1, $2, $3)";

/// A moment in the life of the database. Bounds are published for an earlier one, because the
/// transactions of that time must be over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark {
    /// The database's clock, seconds since the epoch.
    pub at_secs: f64,
    /// The next transaction id.
    xid: i64,
    /// The last id of the queue.
    queue_id: i64,
}

/// The outcome of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Publication {
    /// Until when no deadline passes, seconds since the epoch; none if nothing was published.
    pub until_secs: Option<f64>,
    /// The present moment.
    pub mark: Mark,
}

impl Store {
    /// Publishes the bounds for `mark`, if all transactions of that time are over; without a mark, only
    /// returns one.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn publish_read_bounds(&self, mark: Option<Mark>) -> Result<Publication, Error> {
        let params = [
            (&mark.map(|mark| mark.at_secs) as _, Type::FLOAT8),
            (&mark.map(|mark| mark.xid) as _, Type::INT8),
            (&mark.map(|mark| mark.queue_id) as _, Type::INT8),
        ];
        let row = self.db.query_one(PUBLISH, &params, LONG).await?;
        let name = name_of(PUBLISH);
        let published: bool = column(&row, name, "published")?;
        let until_secs: Option<f64> = column(&row, name, "until_secs")?;
        Ok(Publication {
            until_secs: until_secs.filter(|_| published),
            mark: Mark {
                at_secs: column(&row, name, "new_secs")?,
                xid: column(&row, name, "new_xid")?,
                queue_id: column(&row, name, "new_queue_id")?,
            },
        })
    }
}
