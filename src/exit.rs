//! How a command ends: the exit code, and the error that goes with it.
//!
//! Owns every exit code of the binary. Used by the commands, by `main` and by the signal handler.

/// The exit codes of all commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The command did what it was asked to do.
    Success,
    /// The command failed, or found drift.
    Failure,
    /// The command could not determine the answer.
    Unknown,
    /// Bad usage or configuration; `EX_USAGE` of sysexits.h.
    Usage,
    /// A second signal ended the process at once: 128 + SIGINT, as shells report it.
    Interrupted,
}

impl Exit {
    /// The number that the process exits with.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Unknown => 2,
            Self::Usage => 64,
            Self::Interrupted => 130,
        }
    }
}

/// An error that ends a command.
#[derive(Debug)]
pub enum Failure {
    /// The configuration cannot be used.
    Usage(anyhow::Error),
    /// The command was tried and failed.
    Failed(anyhow::Error),
    /// The answer could not be determined.
    Unknown(anyhow::Error),
}

impl Failure {
    /// How the process exits, and why.
    #[must_use]
    pub fn into_parts(self) -> (Exit, anyhow::Error) {
        match self {
            Self::Usage(error) => (Exit::Usage, error),
            Self::Failed(error) => (Exit::Failure, error),
            Self::Unknown(error) => (Exit::Unknown, error),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}
