//! What can happen in a history: a write to one flow, or something that befalls the whole site.
//!
//! Owns the words, and their form for people. Promises that any part of a list of steps can be
//! played, so that a failure can be made smaller: a write to what is not there does nothing, and a
//! fault that cannot befall the site as it stands does not.

use std::fmt;

use status_indexer::status::Status;

/// One thing that happens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// A statement of its own, to the flow of this number.
    Write {
        history: usize,
        write: Write,
        /// Whether triggers are told of it, as far as it is for the writer to say.
        heard: bool,
    },
    Fault(Fault),
    /// Wait for quiet and judge every run; nothing where the site cannot become quiet now.
    Settle,
}

/// A write; runs and rows are numbered within their history.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Write {
    Run {
        run: i32,
        beat: Beat,
    },
    Remove {
        run: i32,
    },
    Heartbeat {
        run: i32,
        beat: Beat,
    },
    Tag {
        run: i32,
    },
    /// The status itself, by hand.
    Edit {
        run: i32,
        status: Status,
    },
    Evidence {
        id: i64,
        run: i32,
        step: &'static str,
        field: &'static str,
        value: &'static str,
        ts_ms: i64,
    },
    Change {
        id: i64,
        change: Change,
    },
    Erase {
        id: i64,
    },
    /// All evidence of a run, in one statement.
    Clear {
        run: i32,
    },
}

/// What of a metadata row is changed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Change {
    Value(&'static str),
    Time(i64),
    Run(i32),
    Step(&'static str),
    Field(&'static str),
}

/// A heartbeat, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Beat {
    None,
    /// So far from the database's clock at the time of the write.
    Off(i64),
    At(i64),
}

/// What befalls all histories of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL to the daemon, which stays away until [`Fault::Start`].
    Kill,
    Start,
    /// SIGTERM, and a new daemon at once.
    Replace,
    Freeze,
    Thaw,
    /// A second daemon.
    Join,
    Leave,
    /// The server ends all sessions of the daemons.
    CutSessions,
    /// The network breaks all connections of the first daemon.
    CutNetwork,
    BlackHole,
    Heal,
    /// The server dies and comes back.
    Crash,
    /// The server stops in good order and comes back.
    Restart,
    /// `migrate up`, of what is there.
    Migrate,
    TriggersOff,
    TriggersOn,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write {
                history,
                write,
                heard,
            } => {
                let unheard = if *heard { "" } else { ", triggers not told" };
                write!(f, "flow {history}: {write:?}{unheard}")
            }
            Self::Fault(fault) => write!(f, "site: {fault:?}"),
            Self::Settle => f.write_str("wait for quiet"),
        }
    }
}
