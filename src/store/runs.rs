//! Finds the runs whose status time may have changed, and those that differ from the definition.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::apply::{RefusedRun, refused};
use super::{Store, column, list};
use crate::error::Error;
use crate::pg::{LONG, name_of};
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

const COMPARE_EACH: &str = "\
-- runs.compare_each
select last_flow_id, last_run_number, compared, completed, failed, at_secs, replayed_secs,
       flow_ids, run_numbers, drift, refused
  from status_indexer.compare_each($1, $2, $3, $4)";

const KEY_AFTER: &str = "\
-- runs.key_after
select flow_id, run_number
  from status_indexer.key_after($1, $2, $3)";

/// The result of a scan for passed deadlines.
#[derive(Debug)]
pub struct Due {
    /// The database's clock, seconds since the epoch.
    pub at_secs: f64,
    /// Runs stored as running.
    pub running: i64,
    /// Runs to be evaluated, each with the deadline that passed, seconds since the epoch.
    pub runs: Vec<(RunKey, f64)>,
    /// The next moment at which time alone changes a run, seconds since the epoch.
    pub next_deadline_secs: Option<f64>,
}

/// A run whose stored status differs from the definition, with the evidence that decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The run.
    #[serde(flatten)]
    pub key: RunKey,
    /// The stored status.
    pub stored: Status,
    /// The status by the definition.
    pub expected: Status,
    /// The rule that decided.
    pub reason: Reason,
    /// When the run ended as stored, milliseconds since the epoch; none where this is not kept.
    pub stored_finished_at: Option<i64>,
    /// When it ended by the definition; none where this is not kept.
    pub finished_at: Option<i64>,
    /// Whether an event of the run is in the queue, which explains the difference.
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

/// What explains a difference between the stored and the computed status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Explained {
    /// An event of the run is in the queue: the worker is about to apply it.
    PendingEvent,
    /// A deadline has just passed: the sweeper is about to apply it.
    PassedDeadline,
    /// A deadline passed long ago, and the run is still stored as running: the sweeper is late, as
    /// after an outage.
    OverdueDeadline,
    /// Nothing explains it.
    Drift,
}

impl Difference {
    /// Classifies the difference. A deadline that passed no longer than `slack` ago counts as
    /// passed just now.
    #[must_use]
    pub fn classify(&self, slack: Duration) -> Explained {
        let near = |secs: f64| secs <= slack.as_secs_f64();
        if self.queued {
            Explained::PendingEvent
        } else if self.is_of_time() && self.deadline_distance.is_some_and(near) {
            Explained::PassedDeadline
        } else if self.stored == Status::Running
            && matches!(self.reason, Reason::HeartbeatLost | Reason::NoHeartbeat)
        {
            Explained::OverdueDeadline
        } else {
            Explained::Drift
        }
    }

    /// Whether the passing of time alone could explain the difference.
    #[must_use]
    pub fn is_of_time(&self) -> bool {
        self.deadline_distance.is_some() && self.stored != Status::Completed
    }
}

/// A deadline that passed within this time may not have been swept yet.
pub const DEADLINE_SLACK: Duration = Duration::from_secs(5);

/// One batch of a scan.
#[derive(Debug)]
pub struct Compared {
    /// The last run compared; none at the end.
    pub last: Option<RunKey>,
    /// Runs compared.
    pub compared: i64,
    /// Runs among them that are completed by the definition; 0 with [`Detail::Keys`].
    pub completed: i64,
    /// Runs among them that are failed by the definition; 0 with [`Detail::Keys`].
    pub failed: i64,
    /// The database's clock, seconds since the epoch.
    pub at_secs: f64,
    /// On a standby: the time of the last transaction replayed, seconds since the epoch.
    pub replayed_secs: Option<f64>,
    /// The runs that differ.
    pub differing: Vec<RunKey>,
    /// The runs that differ, with their reasons; empty with [`Detail::Keys`].
    pub differences: Vec<Difference>,
    /// The runs that the server cannot evaluate.
    pub refused: Vec<RefusedRun>,
}

/// How much a comparison returns about the runs that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Only their keys: enough for a backfill, where many runs differ.
    Keys,
    /// Also the stored and the computed status, the reason and the evidence.
    Reasons,
}

impl Store {
    /// Finds the runs whose deadline lies in (`since_secs`, now]; without `since_secs`, every run
    /// that time may have changed. With `out_of_range` also the running ones whose heartbeat was
    /// written outside the cutoff.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn due(&self, since_secs: Option<f64>, out_of_range: bool) -> Result<Due, Error> {
        let params = [
            (&since_secs as _, Type::FLOAT8),
            (&out_of_range as _, Type::BOOL),
        ];
        let row = self.db.query_one(DUE, &params, LONG).await?;
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

    /// Compares the `batch` runs after `after` with the definition, in key order and in one
    /// snapshot, without locks.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn compare(
        &self,
        after: Option<&RunKey>,
        batch: i32,
        detail: Detail,
    ) -> Result<Compared, Error> {
        let (flow_id, run_number) = place(after);
        let params = [
            (&flow_id as _, Type::TEXT),
            (&run_number as _, Type::INT8),
            (&batch as _, Type::INT4),
            (&(detail == Detail::Reasons) as _, Type::BOOL),
        ];
        let (name, row) = match self.db.query_one(COMPARE, &params, LONG).await {
            Err(error) if error.may_concern_one_run() => {
                let row = self.db.query_one(COMPARE_EACH, &params, LONG).await?;
                (name_of(COMPARE_EACH), row)
            }
            answer => (name_of(COMPARE), answer?),
        };
        let count =
            |of| column::<Option<i32>>(&row, name, of).map(|count| count.unwrap_or(0).into());
        Ok(Compared {
            last: key(&row, name, "last_flow_id", "last_run_number")?,
            compared: column::<i32>(&row, name, "compared")?.into(),
            completed: count("completed")?,
            failed: count("failed")?,
            at_secs: column(&row, name, "at_secs")?,
            replayed_secs: column(&row, name, "replayed_secs")?,
            differing: keys(&row, name)?,
            differences: list(&row, name, "drift")?,
            refused: refused(&row, name)?,
        })
    }

    /// The last of the `batch` runs after `after`; none where there are fewer.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn key_after(
        &self,
        after: Option<&RunKey>,
        batch: i32,
    ) -> Result<Option<RunKey>, Error> {
        let (flow_id, run_number) = place(after);
        let params = [
            (&flow_id as _, Type::TEXT),
            (&run_number as _, Type::INT8),
            (&batch as _, Type::INT4),
        ];
        let row = self.db.query_one(KEY_AFTER, &params, LONG).await?;
        key(&row, name_of(KEY_AFTER), "flow_id", "run_number")
    }
}

/// The key that every other key follows: the empty flow name and the smallest number.
fn place(after: Option<&RunKey>) -> (&str, i64) {
    after.map_or(("", i64::MIN), |key| (&key.flow_id, key.run_number))
}

/// The keys in the two array columns that `due` and `compare` both return.
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
