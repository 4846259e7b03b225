//! Why connection parameters cannot be used.
//!
//! Promises that a message contains the names of parameters, and no value that may be secret.

use std::path::PathBuf;

use crate::pg::dsn::DsnError;

/// Connection parameters that cannot be used. The message contains the names of parameters, and no
/// value that may be secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParamsError {
    /// The string cannot be parsed.
    #[error(transparent)]
    Malformed(#[from] MalformedDsn),
    /// No version of libpq has this parameter.
    #[error("unknown connection parameter {0}")]
    Unknown(String),
    /// libpq has this parameter, and it has no effect here.
    #[error("connection parameter \"{0}\" is not supported")]
    Unsupported(String),
    /// A value cannot be used.
    #[error("connection parameter \"{name}\" {problem}")]
    Invalid {
        /// The parameter's name.
        name: &'static str,
        /// What is wrong with its value.
        problem: String,
    },
    /// Several parameters contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
    /// A file that holds parameters cannot be used.
    #[error("{problem} {}", path.display())]
    File {
        /// What is wrong, up to the name of the file.
        problem: String,
        /// The file.
        path: PathBuf,
        /// The cause, where there is one.
        #[source]
        source: Option<std::io::Error>,
    },
}

/// A malformed connection string.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct MalformedDsn(DsnError);

impl From<DsnError> for ParamsError {
    fn from(error: DsnError) -> Self {
        Self::Malformed(MalformedDsn(error))
    }
}

/// A value that cannot be used.
pub(super) fn invalid(name: &'static str, problem: &str) -> ParamsError {
    ParamsError::Invalid {
        name,
        problem: problem.to_owned(),
    }
}
