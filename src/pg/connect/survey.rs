//! Tries every address of the connection parameters, and reports what each of them is.
//!
//! [`Connector::open`] stops at the first address that will do. `doctor` shows all of them, by the same
//! attempts: an operator wants to know of the second host before the first one fails.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::Connector;
use super::attempt::{Attempt, state};
use super::error::{Cause, ConnectError};
use super::lookup::place;
use super::role::{Demand, ROLE};
use super::traffic::with_traffic;
use crate::pg::params::{Limit, Params, PasswordOrigin, Target, process_env};
use crate::pg::timeouts::CONNECT_TIMEOUT;
use crate::pg::tls::{Peer, TlsMode};

/// The parameters and every address.
#[derive(Debug)]
pub(crate) struct Survey {
    /// Each address that was tried.
    pub(crate) places: Vec<Place>,
    /// The mode of TLS.
    pub(crate) tls_mode: TlsMode,
    /// Whether the server's certificate is verified.
    pub(crate) is_verified: bool,
    /// The file of the client's certificate and when that expires, seconds since the epoch; or why the
    /// file cannot be used.
    pub(crate) client_certificate: Result<Option<(String, Option<u64>)>, String>,
    /// Where the password comes from, or why it cannot be read.
    pub(crate) password: Result<PasswordOrigin, String>,
}

/// One address.
#[derive(Debug)]
pub(crate) struct Place {
    /// Its name in messages.
    pub(crate) name: String,
    /// Whether it is this machine.
    pub(crate) is_local: bool,
    /// How long the attempt took.
    pub(crate) elapsed: Duration,
    /// What answered, or why there is no connection.
    pub(crate) outcome: Result<Reached, String>,
    /// Whether a server answered and refused the login.
    pub(crate) is_login_refused: bool,
}

/// A server that accepted the connection.
#[derive(Debug)]
pub(crate) struct Reached {
    /// Whether it is in recovery.
    pub(crate) in_recovery: bool,
    /// The other end of TLS; none without TLS.
    pub(crate) tls: Option<Peer>,
}

impl Connector {
    /// Tries all addresses at the same time, each for at most `limit`.
    ///
    /// # Errors
    /// If the parameters cannot be used.
    pub(crate) async fn survey(&self, limit: Duration) -> Result<Survey, ConnectError> {
        let params = self.source.resolve(&process_env)?;
        params.tls.connector()?;
        let targets = params.targets.iter();
        let places = join_all(targets.map(|target| self.survey_host(&params, target, limit))).await;
        let certificate = params.tls.client_certificate();
        Ok(Survey {
            places: places.into_iter().flatten().collect(),
            tls_mode: params.tls.mode,
            is_verified: params.tls.verifies(),
            client_certificate: certificate
                .map(|found| found.map(|(path, expires)| (path.display().to_string(), expires)))
                .map_err(|error| crate::error::chain(&error)),
            password: self
                .source
                .password_origin(&params)
                .map_err(|error| crate::error::chain(&error)),
        })
    }

    async fn survey_host(&self, params: &Params, target: &Target, limit: Duration) -> Vec<Place> {
        let begin = Instant::now();
        let failed = |name, cause: String| Place {
            name,
            is_local: false,
            elapsed: begin.elapsed(),
            outcome: Err(cause),
            is_login_refused: false,
        };
        let limit = match params.connect_timeout {
            Some(Limit::After(own)) => own.min(limit),
            Some(Limit::Unlimited) => limit,
            None => CONNECT_TIMEOUT.min(limit),
        };
        let attempt = || {
            params.tls.connector().map(|tls| Attempt {
                params,
                tls,
                limit: Limit::After(limit),
                settings: "",
            })
        };
        let lookup = match attempt() {
            Ok(lookup) => lookup,
            Err(error) => return vec![failed(place(target, None), crate::error::chain(&error))],
        };
        let mut unresolved = ConnectError::new();
        let addresses = lookup.addresses(target, &mut unresolved).await;
        if addresses.is_empty() {
            let reason = unresolved.reasons().next().unwrap_or_default();
            return vec![failed(place(target, None), reason)];
        }
        let tries = addresses.into_iter().map(|address| async move {
            match attempt() {
                Ok(attempt) => self.survey_address(attempt, target, address, limit).await,
                Err(error) => failed(place(target, address), crate::error::chain(&error)),
            }
        });
        join_all(tries).await
    }

    async fn survey_address(
        &self,
        mut attempt: Attempt<'_>,
        target: &Target,
        address: Option<IpAddr>,
        limit: Duration,
    ) -> Place {
        let begin = Instant::now();
        let mut failed = ConnectError::new();
        let outcome = self
            .reach(&mut attempt, target, address, limit, &mut failed)
            .await;
        Place {
            name: place(target, address),
            is_local: address.is_none_or(|address| address.is_loopback()),
            elapsed: begin.elapsed(),
            outcome,
            is_login_refused: failed.is_login_refused(),
        }
    }

    async fn reach(
        &self,
        attempt: &mut Attempt<'_>,
        target: &Target,
        address: Option<IpAddr>,
        limit: Duration,
        failed: &mut ConnectError,
    ) -> Result<Reached, String> {
        let password = self.source.password(attempt.params, target);
        let password = password.map_err(|error| crate::error::chain(&error))?;
        let any = Demand::none();
        let tried = attempt.address(target, address, password.as_ref(), any);
        let Some((client, mut traffic)) = tried.await.unpack(failed) else {
            let reasons: Vec<String> = failed.reasons().collect();
            return Err(reasons.join("; "));
        };
        let asked = with_traffic(&mut traffic, client.simple_query(ROLE));
        let role = match timeout(limit, asked).await {
            Ok(Some(role)) => role.map_err(|error| Cause::Driver(error).to_string())?,
            Ok(None) => return Err(Cause::Closed.to_string()),
            Err(_) => return Err(Cause::NoAnswer(limit).to_string()),
        };
        Ok(Reached {
            in_recovery: role.iter().find_map(state).is_some_and(|state| state.0),
            tls: attempt.tls.peer(),
        })
    }
}
