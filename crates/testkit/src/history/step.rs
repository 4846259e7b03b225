//! The steps of a history: a write to one flow, or a fault that affects the environment.
//!
//! Owns the list of steps and their text. Promises that any part of a list of steps can be
//! executed, so that a failing list can be reduced: a write to a missing row does nothing, and a
//! fault that cannot be injected in the environment's present state is skipped.

use std::fmt;

use crate::oracle::Status;

/// One step of a round.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// A write, as a statement of its own.
    Write {
        /// The number of the flow that it goes to.
        history: usize,
        /// What is written.
        write: Write,
        /// Whether the session has triggers enabled.
        fires_triggers: bool,
    },
    /// A fault, which affects all histories.
    Fault(Fault),
    /// Wait until the environment has settled and check every run; skipped where it cannot settle
    /// in its present state.
    Check,
}

/// A write; runs and rows are numbered within their history.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Create a run.
    Run {
        /// Its number.
        run: i32,
        /// Its first heartbeat.
        heartbeat: Heartbeat,
    },
    /// Delete a run.
    Remove {
        /// Its number.
        run: i32,
    },
    /// Set a run's heartbeat.
    Heartbeat {
        /// Its number.
        run: i32,
        /// The new heartbeat.
        heartbeat: Heartbeat,
    },
    /// Add a tag to a run.
    Tag {
        /// Its number.
        run: i32,
    },
    /// Change the stored status by hand.
    Edit {
        /// The run's number.
        run: i32,
        /// The new status.
        status: Status,
    },
    /// Insert a metadata row.
    Evidence {
        /// The row's id.
        id: i64,
        /// Its run, which need not exist.
        run: i32,
        /// The step's name.
        step: &'static str,
        /// The field's name.
        field: &'static str,
        /// The field's value.
        value: &'static str,
        /// `ts_epoch`, milliseconds.
        ts_ms: i64,
    },
    /// Update a metadata row.
    Change {
        /// The row's id.
        id: i64,
        /// What is changed.
        change: Change,
    },
    /// Delete a metadata row.
    Erase {
        /// The row's id.
        id: i64,
    },
    /// Delete all metadata of a run, in one statement.
    Clear {
        /// The run's number.
        run: i32,
    },
}

/// The column of a metadata row that is changed, with its new value.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// `value`
    Value(&'static str),
    /// `ts_epoch`, milliseconds
    Time(i64),
    /// `run_number`
    Run(i32),
    /// `step_name`
    Step(&'static str),
    /// `field_name`
    Field(&'static str),
}

/// A heartbeat, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Heartbeat {
    /// Null.
    None,
    /// Relative to the database's clock at the time of the write.
    FromNow(i64),
    /// Since the epoch.
    At(i64),
}

/// A fault: it affects all histories of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to the daemon, which stays away until [`Fault::Start`].
    Kill,
    /// Start the daemon again.
    Start,
    /// SIGTERM, and a new daemon at once.
    Replace,
    /// SIGSTOP to the daemon.
    Freeze,
    /// SIGCONT.
    Thaw,
    /// Start a second daemon.
    Join,
    /// Kill the second daemon.
    Leave,
    /// The server terminates all sessions of the daemons.
    CutSessions,
    /// The network closes all connections of the first daemon.
    CutNetwork,
    /// The network delivers nothing more to and from the first daemon.
    BlackHole,
    /// The network delivers again.
    Heal,
    /// The server crashes and comes back.
    Crash,
    /// The server shuts down and comes back.
    Restart,
    /// `migrate up` on an installed database.
    Migrate,
    /// Disable all of our triggers.
    TriggersOff,
    /// Enable them again.
    TriggersOn,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write {
                history,
                write,
                fires_triggers,
            } => {
                let suffix = if *fires_triggers {
                    ""
                } else {
                    ", triggers disabled"
                };
                write!(f, "flow {history}: {write:?}{suffix}")
            }
            Self::Fault(fault) => write!(f, "fault: {fault:?}"),
            Self::Check => f.write_str("wait until settled, and check"),
        }
    }
}
