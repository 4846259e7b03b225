//! One attempt: an address, with TLS and without as `sslmode` says, within the limit.
//!
//! The limit covers the whole attempt: TCP, TLS, start-up, authentication, the check of the server's role
//! and the settings of the session.

use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use secrecy::SecretString;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, SimpleQueryMessage};

use super::config::{config, modes};
use super::error::{Cause, ConnectError};
use super::lookup::place;
use super::role::{Demand, ROLE};
use super::traffic::{Traffic, with_traffic};
use crate::pg::params::{Limit, Params, Target};
use crate::pg::tls::Tls;

/// A connection and its traffic.
pub(super) type Session = (Client, Traffic);

/// What the attempts of one connection have in common.
pub(super) struct Attempt<'a> {
    pub(super) params: &'a Params,
    pub(super) tls: Tls,
    pub(super) limit: Limit,
    pub(super) settings: &'a str,
}

/// The outcome at one address: a session, or failures with their places.
pub(super) struct Tried(Result<Session, Vec<(String, Cause)>>);

impl Tried {
    pub(super) fn unpack(self, failed: &mut ConnectError) -> Option<Session> {
        match self.0 {
            Ok(session) => Some(session),
            Err(causes) => {
                for (place, cause) in causes {
                    failed.push(&place, cause);
                }
                None
            }
        }
    }
}

impl Attempt<'_> {
    /// Tries one address, within the limit.
    pub(super) async fn address(
        &mut self,
        target: &Target,
        address: Option<IpAddr>,
        password: Option<&SecretString>,
        demand: Demand,
    ) -> Tried {
        let place = place(target, address);
        let mut failures = Vec::new();
        let limit = self.limit;
        let tries = async {
            let modes = modes(target, self.params.tls.mode);
            for (at, mode) in modes.iter().enumerate() {
                let config = config(self.params, target, address, password, *mode);
                self.tls = self.tls.unused();
                let cause = match self.session(&config, demand).await {
                    Ok(session) => return Some(session),
                    Err(cause) => cause,
                };
                let may_retry = self.may_retry(*mode, &cause);
                let place = match (modes.len(), self.tls.is_used()) {
                    (1, _) => place.clone(),
                    (_, true) => format!("{place} with TLS"),
                    (_, false) => format!("{place} without TLS"),
                };
                failures.push((place, cause));
                if at + 1 == modes.len() || !may_retry {
                    break;
                }
            }
            None
        };
        match within(limit, tries).await {
            Ok(Some(session)) => return Tried(Ok(session)),
            Ok(None) => {}
            Err(limit) => failures.push((place, Cause::NoAnswer(limit))),
        }
        Tried(Err(failures))
    }

    /// Whether the next mode may succeed where this one failed, by the rules of libpq.
    fn may_retry(&self, mode: SslMode, cause: &Cause) -> bool {
        match mode {
            SslMode::Disable => cause.is_login_refused(),
            SslMode::Prefer => {
                self.tls.is_used() && (cause.is_login_refused() || cause.is_handshake())
            }
            _ => false,
        }
    }

    /// Opens a session and checks the server's role.
    async fn session(&self, config: &Config, demand: Demand) -> Result<Session, Cause> {
        let connected = config.connect(self.tls.clone()).await;
        let (client, mut traffic) = connected.map_err(Cause::Driver)?;
        if demand.is_none() && self.settings.is_empty() {
            return Ok((client, traffic));
        }
        let role = async {
            if demand.is_none() {
                return Ok(Vec::new());
            }
            client.simple_query(ROLE).await
        };
        let settings = async {
            if self.settings.is_empty() {
                return Ok(());
            }
            client.batch_execute(self.settings).await
        };
        // Both are sent at once: one round trip.
        let both = async { tokio::join!(role, settings) };
        let Some((role, settings)) = with_traffic(&mut traffic, both).await else {
            return Err(Cause::Closed);
        };
        let role = role.map_err(Cause::Driver)?;
        let row = role.iter().find_map(state);
        if let Some(problem) = row.and_then(|(recovery, read)| demand.refuse(recovery, read)) {
            return Err(Cause::Role(problem));
        }
        settings.map_err(Cause::Driver)?;
        Ok((client, traffic))
    }
}

/// Whether the server is in recovery, and whether it is read-only.
pub(super) fn state(message: &SimpleQueryMessage) -> Option<(bool, bool)> {
    match message {
        SimpleQueryMessage::Row(row) => Some((row.get(0) == Some("t"), row.get(1) == Some("on"))),
        _ => None,
    }
}

/// The future's output, or the limit that it exceeded.
pub(super) async fn within<T>(
    limit: Limit,
    future: impl Future<Output = T>,
) -> Result<T, Duration> {
    match limit {
        Limit::Unlimited => Ok(future.await),
        Limit::After(limit) => timeout(limit, future).await.map_err(|_| limit),
    }
}
