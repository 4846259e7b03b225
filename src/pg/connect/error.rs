//! Why no host accepted a connection: one cause for each place that was tried.

use std::fmt;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::error::chain;
use crate::pg::params::ParamsError;
use crate::pg::tls::{HandshakeError, TlsError};

/// No connection to any of the hosts; says why for each.
#[derive(Debug)]
pub struct ConnectError {
    failures: Vec<Failure>,
    /// What the connection is for, where there are two kinds.
    purpose: Option<&'static str>,
}

#[derive(Debug)]
struct Failure {
    /// The address; none if the parameters themselves cannot be used.
    place: Option<String>,
    cause: Cause,
}

/// Why one place was not usable.
#[derive(Debug)]
pub(super) enum Cause {
    Params(ParamsError),
    Tls(TlsError),
    Lookup(std::io::Error),
    NoAnswer(Duration),
    Closed,
    /// The server's role is not the one that the connection needs.
    Role(&'static str),
    Driver(tokio_postgres::Error),
}

impl Cause {
    fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Driver(error) => error.code(),
            _ => None,
        }
    }

    pub(super) fn is_login_refused(&self) -> bool {
        self.code()
            .is_some_and(|code| code.code().starts_with("28"))
    }

    pub(super) fn is_handshake(&self) -> bool {
        let Self::Driver(error) = self else {
            return false;
        };
        std::error::Error::source(error).is_some_and(|cause| cause.is::<HandshakeError>())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Params(error) => f.write_str(&chain(error)),
            Self::Tls(error) => f.write_str(&chain(error)),
            Self::Lookup(error) => write!(f, "cannot resolve the host name: {error}"),
            Self::NoAnswer(limit) => write!(f, "no answer within {limit:?}"),
            Self::Closed => f.write_str("the server closed the connection"),
            Self::Role(problem) => f.write_str(problem),
            Self::Driver(error) => f.write_str(&chain(error)),
        }
    }
}

impl ConnectError {
    /// Nothing was tried yet.
    pub(super) fn new() -> Self {
        Self::from(Vec::new())
    }

    pub(super) fn of(mut self, purpose: Option<&'static str>) -> Self {
        self.purpose = purpose;
        self
    }

    /// Whether a server refused the login.
    #[must_use]
    pub fn is_login_refused(&self) -> bool {
        let last = self.failures.last();
        last.is_some_and(|failure| failure.cause.is_login_refused())
    }

    /// The cause at each place that was tried.
    pub(super) fn reasons(&self) -> impl Iterator<Item = String> {
        self.failures
            .iter()
            .map(|failure| failure.cause.to_string())
    }

    pub(super) fn push(&mut self, place: &str, cause: Cause) {
        self.failures.push(Failure {
            place: Some(place.to_owned()),
            cause,
        });
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(purpose) = self.purpose {
            write!(f, "{purpose}: ")?;
        }
        for (at, failure) in self.failures.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            f.write_str(separator)?;
            if let Some(place) = &failure.place {
                write!(f, "{place}: ")?;
            }
            match failure.cause {
                // The source says the rest.
                Cause::Driver(_) if at + 1 == self.failures.len() => {
                    f.write_str("no connection")?
                }
                ref cause => write!(f, "{cause}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.failures.last()?.cause {
            Cause::Driver(error) => Some(error),
            _ => None,
        }
    }
}

impl From<Vec<Failure>> for ConnectError {
    fn from(failures: Vec<Failure>) -> Self {
        Self {
            failures,
            purpose: None,
        }
    }
}

impl From<ParamsError> for ConnectError {
    fn from(error: ParamsError) -> Self {
        Self::from(vec![Failure {
            place: None,
            cause: Cause::Params(error),
        }])
    }
}

impl From<TlsError> for ConnectError {
    fn from(error: TlsError) -> Self {
        Self::from(vec![Failure {
            place: None,
            cause: Cause::Tls(error),
        }])
    }
}
