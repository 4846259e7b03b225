//! Why one run has its status: the evidence, the rule that decided, what is stored, and when time
//! alone can change it. Reads only; the judging is the database's.

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;
use tokio_postgres::types::{Json, Type};

use crate::error::Error;
use crate::pg::name_of;
use crate::status::{Reason, Status};

/// One row of one value: the explanation, or null.
pub(crate) const EXPLAIN: &str = "\
-- explain.run
select status_indexer.explain($1, $2)";

/// One metadata row that counts.
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

/// What the rules look at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Evidence {
    /// The newest `attempt_ok`.
    pub attempt_ok: Option<String>,
    /// Whether that can be read as a boolean; otherwise it counts as none.
    pub attempt_ok_is_boolean: bool,
    /// Its time, milliseconds since the epoch.
    pub attempt_ok_ts: Option<i64>,
    /// The newest `attempt`'s time, milliseconds since the epoch; looked at only after a failure.
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
    /// What the definition says now.
    pub status: Status,
    /// The rule that decided.
    pub reason: Reason,
    /// When the run ended, milliseconds since the epoch; none while it runs.
    pub finished_at: Option<serde_json::Number>,
    /// What the column says.
    pub stored: String,
    /// Whether both say the same.
    pub agrees: bool,
    /// Whether the first pass is done.
    #[serde(rename = "valid")]
    pub believable: bool,
    /// Whether an event of the run waits in the queue.
    pub queued: bool,
    /// What the rules looked at.
    pub evidence: Evidence,
    /// The cutoff in force, seconds.
    pub cutoff_secs: i64,
    /// The database's clock, seconds since the epoch.
    pub at_secs: f64,
    /// When time alone changes the status, seconds since the epoch.
    pub next_change_secs: Option<f64>,
    /// What it is from then on.
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
    let answer: Option<Json<Explanation>> = row.try_get(0).map_err(|source| Error::Answer {
        statement: name_of(EXPLAIN),
        source: source.into(),
    })?;
    Ok(answer.map(|json| json.0))
}

impl Explanation {
    /// For people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut lines = vec![
            format!(
                "run       {}/{}{}",
                self.flow_id,
                self.run_number,
                self.own_id()
            ),
            format!("status    {} ({})", self.status, self.reason),
            format!("because   {}", self.because()),
            format!("stored    {}", self.stored_text()),
            format!("changes   {}", self.next_text()),
            format!(
                "cutoff    {} s, database clock {:.3}",
                self.cutoff_secs, self.at_secs
            ),
            "evidence".to_owned(),
        ];
        match self.evidence.last_heartbeat_ts {
            Some(heartbeat) => lines.push(format!(
                "  heartbeat   {heartbeat}  ({} s ago)",
                round(self.at_secs - heartbeat_secs(heartbeat))
            )),
            None => lines.push("  heartbeat   none".to_owned()),
        }
        if self.evidence.rows.is_empty() {
            lines.push("  end step    no attempt, no attempt_ok".to_owned());
        }
        for row in &self.evidence.rows {
            lines.push(format!(
                "  {:<11} {}  {}  (task {}, id {})",
                row.field_name,
                row.ts_epoch,
                row.value.as_deref().unwrap_or("null"),
                row.task_id,
                row.id
            ));
        }
        lines.join("\n")
    }

    fn own_id(&self) -> String {
        self.run_id
            .as_ref()
            .map_or_else(String::new, |id| format!("  (run_id {id})"))
    }

    fn because(&self) -> String {
        let rule = match self.reason {
            Reason::Retrying => "the end step failed, and a newer attempt of it has started",
            Reason::EndSucceeded => "the end step's newest attempt_ok is true",
            Reason::EndFailed => "the end step's newest attempt_ok is false",
            Reason::Heartbeat => {
                "no end step has finished, and the last heartbeat is within the cutoff"
            }
            Reason::HeartbeatLost => {
                "no end step has finished, and the last heartbeat is further from the clock than the cutoff"
            }
            Reason::NoHeartbeat => "no end step has finished, and there never was a heartbeat",
        };
        if self.evidence.attempt_ok_is_boolean {
            rule.to_owned()
        } else {
            format!("{rule}; the newest attempt_ok is no boolean and counts as none")
        }
    }

    fn stored_text(&self) -> String {
        let verdict = match (self.agrees, self.believable, self.queued) {
            (true, true, _) => "agrees",
            (true, false, _) => {
                "agrees, but the first pass is not done: do not believe the column yet"
            }
            (false, _, true) => "differs; an event waits in the queue",
            (false, false, false) => "differs; the first pass is not done",
            (false, true, false) => "DIFFERS, and nothing waits that would explain it",
        };
        format!("{} ({verdict})", self.stored)
    }

    fn next_text(&self) -> String {
        match (self.next_change_secs, self.next_status) {
            (Some(at), Some(status)) => format!(
                "to {status} at {at:.0}, in {} s, unless a heartbeat or evidence comes",
                round(at - self.at_secs)
            ),
            _ => "not by time alone".to_owned(),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown to the second")]
fn heartbeat_secs(heartbeat: i64) -> f64 {
    heartbeat as f64
}

fn round(secs: f64) -> String {
    format!("{secs:.1}")
}
