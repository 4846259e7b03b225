//! Reads over the runs: what time may have changed, what differs from the definition, and why one
//! run has its status.

use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::{column, list};
use crate::error::Error;
use crate::pg::{Db, LONG, name_of};
use crate::status::{Reason, RunKey, Status};

const DUE: &str = "\
-- runs.due
select at_secs, running, flow_ids, run_numbers, deadlines, next_deadline
  from status_indexer.due($1, $2)";

const COMPARE: &str = "\
-- runs.compare
select last_flow_id, last_run_number, compared, completed, failed, at_secs, replayed_secs,
       flow_ids, run_numbers, drift
  from status_indexer.compare($1, $2, $3, $4)";

const SKIP: &str = "\
-- runs.key_after
select flow_id, run_number
  from status_indexer.key_after($1, $2, $3)";

/// What a look at the clock found.
#[derive(Debug)]
pub struct Due {
    /// The database's clock, seconds since the epoch.
    pub at_secs: f64,
    /// Runs stored as running.
    pub running: i64,
    /// Runs to be judged, each with the deadline that passed, seconds since the epoch.
    pub runs: Vec<(RunKey, f64)>,
    /// The next moment that time alone changes a run, seconds since the epoch.
    pub next_deadline_secs: Option<f64>,
}

/// Finds the runs whose deadline lies in (`since_secs`, now]; without it, every run that time may
/// have changed. With `jumps` also the running ones whose heartbeat leapt out of range.
///
/// # Errors
/// If the call fails.
pub async fn due(db: &Db, since_secs: Option<f64>, jumps: bool) -> Result<Due, Error> {
    let row = db
        .query_one(
            DUE,
            &[(&since_secs, Type::FLOAT8), (&jumps, Type::BOOL)],
            LONG,
        )
        .await?;
    let name = name_of(DUE);
    let deadlines: Option<Vec<f64>> = column(&row, name, "deadlines")?;
    let runs = keys(&row, name)?
        .into_iter()
        .zip(deadlines.into_iter().flatten())
        .collect();
    Ok(Due {
        at_secs: column(&row, name, "at_secs")?,
        running: column(&row, name, "running")?,
        runs,
        next_deadline_secs: column(&row, name, "next_deadline")?,
    })
}

/// A run whose stored status differs from the definition, with what decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Whose.
    #[serde(flatten)]
    pub key: RunKey,
    /// What the column says.
    pub stored: Status,
    /// What the definition says.
    pub expected: Status,
    /// The rule that decided.
    pub reason: Reason,
    /// Whether an event of the run waits in the queue, which explains the difference.
    pub queued: bool,
    /// The newest `attempt_ok`, as text, up to 80 characters.
    pub ok_value: Option<String>,
    /// Its time, milliseconds since the epoch.
    pub ok_ts: Option<i64>,
    /// The newest `attempt`'s time, milliseconds since the epoch.
    pub retry_ts: Option<i64>,
    /// The last heartbeat, seconds since the epoch.
    pub heartbeat: Option<i64>,
    /// Seconds between the clock and the nearest edge of the cutoff, where a heartbeat decided.
    pub deadline_distance: Option<f64>,
}

impl Difference {
    /// Whether the passing of time alone could explain the difference.
    #[must_use]
    pub fn is_of_time(&self) -> bool {
        self.deadline_distance.is_some() && self.stored != Status::Completed
    }

    /// Whether an event that waits, or a deadline that has just passed, explains it: the pipeline
    /// is about to mend it.
    #[must_use]
    pub fn is_in_flight(&self) -> bool {
        let near = |secs: f64| secs <= DEADLINE_SLACK_SECS;
        self.queued || (self.is_of_time() && self.deadline_distance.is_some_and(near))
    }

    /// Whether the run is stored as running and its heartbeat says that it no longer does, which is
    /// the sweeper's to find.
    #[must_use]
    pub fn has_run_out(&self) -> bool {
        self.stored == Status::Running
            && matches!(self.reason, Reason::HeartbeatLost | Reason::NoHeartbeat)
    }
}

/// A deadline that passed so recently may not have been swept yet.
pub const DEADLINE_SLACK_SECS: f64 = 5.0;

/// One step of a walk over all runs.
#[derive(Debug)]
pub struct Compared {
    /// The last run looked at; none at the end.
    pub last: Option<RunKey>,
    /// How many runs were looked at.
    pub compared: i64,
    /// How many of them the definition says are completed; none where reasons are not wanted.
    pub completed: i64,
    /// How many of them the definition says are failed; none where reasons are not wanted.
    pub failed: i64,
    /// The database's clock, seconds since the epoch.
    pub at_secs: f64,
    /// On a standby: the time of the last transaction replayed, seconds since the epoch.
    pub replayed_secs: Option<f64>,
    /// The runs that differ.
    pub differing: Vec<RunKey>,
    /// The same with their reasons, where those are wanted.
    pub differences: Vec<Difference>,
}

/// What is to be told of the runs that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Which they are. A first pass, to which many differ, needs no more.
    Keys,
    /// Also what is stored, what should be, and why.
    Reasons,
}

/// Compares the `batch` runs after `after`, in key order and in one snapshot, without locks.
///
/// # Errors
/// If the call fails.
pub async fn compare(
    db: &Db,
    after: Option<&RunKey>,
    batch: i32,
    detail: Detail,
) -> Result<Compared, Error> {
    let (flow_id, run_number) = place(after);
    let values: [(&(dyn ToSql + Sync), Type); 4] = [
        (&flow_id, Type::TEXT),
        (&run_number, Type::INT8),
        (&batch, Type::INT4),
        (&(detail == Detail::Reasons), Type::BOOL),
    ];
    let row = db.query_one(COMPARE, &values, LONG).await?;
    let name = name_of(COMPARE);
    let count = |of| column::<Option<i32>>(&row, name, of).map(|count| count.unwrap_or(0).into());
    Ok(Compared {
        last: key(&row, name, "last_flow_id", "last_run_number")?,
        compared: column::<i32>(&row, name, "compared")?.into(),
        completed: count("completed")?,
        failed: count("failed")?,
        at_secs: column(&row, name, "at_secs")?,
        replayed_secs: column(&row, name, "replayed_secs")?,
        differing: keys(&row, name)?,
        differences: list(&row, name, "drift")?,
    })
}

/// The last of the `batch` runs after `after`; none where there are fewer.
///
/// # Errors
/// If the call fails.
pub async fn skip(db: &Db, after: Option<&RunKey>, batch: i32) -> Result<Option<RunKey>, Error> {
    let (flow_id, run_number) = place(after);
    let values: [(&(dyn ToSql + Sync), Type); 3] = [
        (&flow_id, Type::TEXT),
        (&run_number, Type::INT8),
        (&batch, Type::INT4),
    ];
    let row = db.query_one(SKIP, &values, LONG).await?;
    key(&row, name_of(SKIP), "flow_id", "run_number")
}

/// No flow's name sorts before the empty one, and no run's number before the least.
fn place(after: Option<&RunKey>) -> (&str, i64) {
    after.map_or(("", i64::MIN), |key| (&key.flow_id, key.run_number))
}

/// The keys in two columns of arrays, which `due` and `compare` both have.
fn keys(row: &Row, statement: &'static str) -> Result<Vec<RunKey>, Error> {
    let flow_ids: Option<Vec<String>> = column(row, statement, "flow_ids")?;
    let run_numbers: Option<Vec<i64>> = column(row, statement, "run_numbers")?;
    let pairs = flow_ids.into_iter().flatten();
    Ok(pairs
        .zip(run_numbers.into_iter().flatten())
        .map(|(flow_id, run_number)| RunKey {
            flow_id,
            run_number,
        })
        .collect())
}

fn key(
    row: &Row,
    statement: &'static str,
    flow_column: &'static str,
    run_column: &'static str,
) -> Result<Option<RunKey>, Error> {
    let flow: Option<String> = column(row, statement, flow_column)?;
    let run: Option<i64> = column(row, statement, run_column)?;
    Ok(flow.zip(run).map(|(flow_id, run_number)| RunKey {
        flow_id,
        run_number,
    }))
}
