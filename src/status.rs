//! The vocabulary: the key of a run, its status, and the rule that decided it.
//!
//! Decides nothing: statuses are computed in SQL (`migrations/0005_definition.sql`), and these
//! types carry the result to logs, metrics and answers.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A run, by the primary key of `runs_v3`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunKey {
    /// The flow's name.
    pub flow_id: String,
    /// The run's number, unique within the database's sequence.
    pub run_number: i64,
}

impl fmt::Display for RunKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.flow_id, self.run_number)
    }
}

/// The status of a run, as Metaflow's metadata service names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It sends heartbeats, or its end step is being retried.
    Running,
    /// Its end step succeeded.
    Completed,
    /// Its end step failed, or its heartbeat stopped.
    Failed,
}

impl Status {
    /// Every status, in the order in which they are listed.
    pub const ALL: [Self; 3] = [Self::Running, Self::Completed, Self::Failed];

    /// The text stored in the column.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The rule that decided a status; the first that holds, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The end step failed, and a newer attempt of it has started.
    Retrying,
    /// The end step's newest attempt succeeded.
    EndSucceeded,
    /// The end step's newest attempt failed.
    EndFailed,
    /// The last heartbeat is within the cutoff of the clock, on either side.
    Heartbeat,
    /// The last heartbeat is farther from the clock than the cutoff.
    HeartbeatLost,
    /// The run never sent a heartbeat.
    NoHeartbeat,
}

impl Reason {
    /// Every reason, in the order of the rules.
    pub const ALL: [Self; 6] = [
        Self::Retrying,
        Self::EndSucceeded,
        Self::EndFailed,
        Self::Heartbeat,
        Self::HeartbeatLost,
        Self::NoHeartbeat,
    ];

    /// The status that goes with the reason, as `status_indexer.status(reason)` in SQL.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::Retrying | Self::Heartbeat => Status::Running,
            Self::EndSucceeded => Status::Completed,
            Self::EndFailed | Self::HeartbeatLost | Self::NoHeartbeat => Status::Failed,
        }
    }

    /// The rule's name in SQL, logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retrying => "retrying",
            Self::EndSucceeded => "end_succeeded",
            Self::EndFailed => "end_failed",
            Self::Heartbeat => "heartbeat",
            Self::HeartbeatLost => "heartbeat_lost",
            Self::NoHeartbeat => "no_heartbeat",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
