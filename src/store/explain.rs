//! `status_indexer.explain`: why one run has its status.
//!
//! Serves the command and the read API. Reads only; the database evaluates the run.

use serde::{Deserialize, Serialize};
use tokio_postgres::types::{Json, Type};
use tokio_postgres::{Client, Row};

use crate::error::Error;
use crate::pg::name_of;
use crate::status::{Reason, Status};

/// Returns one row with one value: the explanation, or null.
pub(crate) const EXPLAIN: &str = "\
-- explain.run
select status_indexer.explain($1, $2)";

/// One metadata row that the rules use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EvidenceRow {
    /// The row's id.
    pub id: i64,
    /// The task that wrote it.
    pub task_id: i64,
    /// `attempt` or `attempt_ok`.
    pub field_name: String,
    /// Its value, as text.
    pub value: Option<String>,
    /// Its time, milliseconds since the epoch.
    pub ts_epoch: i64,
}

/// The evidence that the rules use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Evidence {
    /// The newest `attempt_ok`.
    pub attempt_ok: Option<String>,
    /// Whether it is a valid boolean; otherwise it counts as missing.
    pub attempt_ok_is_boolean: bool,
    /// Its time, milliseconds since the epoch.
    pub attempt_ok_ts: Option<i64>,
    /// The newest `attempt`'s time, milliseconds since the epoch; used only after a failure.
    pub attempt_ts: Option<i64>,
    /// The last heartbeat, seconds since the epoch.
    pub last_heartbeat_ts: Option<i64>,
    /// The newest rows, at most a hundred.
    pub rows: Vec<EvidenceRow>,
}

/// The whole explanation of one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explanation {
    /// The flow.
    pub flow_id: String,
    /// The run's number.
    pub run_number: i64,
    /// The run's own id, where one is set.
    pub run_id: Option<String>,
    /// The status by the definition, now.
    pub status: Status,
    /// The rule that decided.
    pub reason: Reason,
    /// When the run ended, milliseconds since the epoch; none while it runs.
    pub finished_at: Option<serde_json::Number>,
    /// The stored status.
    pub stored: String,
    /// Whether both are equal.
    pub agrees: bool,
    /// Whether the column is valid.
    pub valid: bool,
    /// Whether an event of the run is in the queue.
    pub queued: bool,
    /// The evidence.
    pub evidence: Evidence,
    /// The cutoff in force, seconds.
    pub cutoff_secs: i64,
    /// The database's clock, seconds since the epoch.
    pub at_secs: f64,
    /// On a replica: how old its data is at most, seconds.
    pub replica_age_secs: Option<f64>,
    /// When time alone changes the status, seconds since the epoch.
    pub next_change_secs: Option<f64>,
    /// The status from then on.
    pub next_status: Option<Status>,
}

/// Explains one run, named by its number or its own id; none where there is no such run.
///
/// # Errors
/// If the call fails.
pub async fn explain(
    client: &Client,
    flow_id: &str,
    run: &str,
) -> Result<Option<Explanation>, Error> {
    let row = client
        .query_typed_one(EXPLAIN, &[(&flow_id, Type::TEXT), (&run, Type::TEXT)])
        .await
        .map_err(|source| Error::Postgres {
            statement: name_of(EXPLAIN),
            source,
        })?;
    decode(&row)
}

/// Decodes the answer of [`EXPLAIN`]; none where the run does not exist.
///
/// # Errors
/// If the function is of another version.
pub(crate) fn decode(row: &Row) -> Result<Option<Explanation>, Error> {
    let answer: Option<Json<Explanation>> = row.try_get(0).map_err(|source| Error::Answer {
        statement: name_of(EXPLAIN),
        source: source.into(),
    })?;
    Ok(answer.map(|json| json.0))
}
