//! Opens connections as libpq does: one host, and one address of it, after the other.
//!
//! Promises that each address has its own limit, which covers the whole of an attempt (TCP, TLS,
//! start-up, authentication, the check of the server's role, the session's settings), and that a
//! connection that writes is never one to a server in recovery. Only a refused login ends the attempt
//! before the last host. Everything that connects goes through [`Connector`].
//!
//! [`Connector`] goes through the hosts; [`attempt`] tries one address; [`role`] checks the server's role;
//! [`survey`] tries all addresses.

mod attempt;
mod config;
mod error;
mod lookup;
mod role;
mod survey;
mod traffic;

use std::sync::Arc;
use std::time::Duration;

use rand::seq::SliceRandom as _;
use tokio::time::timeout;
use tokio_postgres::{CancelToken, Client};

use super::logins::Logins;
use super::params::{Limit, ParamsSource, process_env};
use super::session::SessionProfile;
use super::timeouts::{CONNECT_TIMEOUT, MAX_AGE};
use super::tls::TlsError;
use crate::error::{Error, chain};
use attempt::{Attempt, Session};
use role::Demand;

pub use error::ConnectError;
pub(crate) use survey::{Place, Survey};
pub(crate) use traffic::{Traffic, drive};

/// Opens connections with one set of parameters. A clone shares the record of refused logins.
#[derive(Debug, Clone)]
pub struct Connector {
    source: ParamsSource,
    is_replica: bool,
    max_age: Duration,
    logins: Arc<Logins>,
    /// What the connections are for, in messages, where there are two kinds.
    purpose: Option<&'static str>,
}

impl Connector {
    /// Checks the parameters, with the files that they name. Does not connect.
    ///
    /// # Errors
    /// If they cannot be used.
    pub fn new(source: ParamsSource) -> anyhow::Result<Self> {
        source.resolve(&process_env)?.tls.connector()?;
        Ok(Self::unchecked(source))
    }

    /// The same for a process that waits for what is missing: certificates and keys may be created
    /// or replaced later, because they are read for each connection.
    ///
    /// # Errors
    /// If the parameters cannot be used, whatever their files contain.
    pub fn new_for_daemon(source: ParamsSource) -> anyhow::Result<Self> {
        match source.resolve(&process_env)?.tls.connector() {
            Err(error @ TlsError::Pair) => Err(error.into()),
            Ok(_) | Err(_) => Ok(Self::unchecked(source)),
        }
    }

    fn unchecked(source: ParamsSource) -> Self {
        Self {
            source,
            is_replica: false,
            max_age: MAX_AGE,
            logins: Arc::default(),
            purpose: None,
        }
    }

    /// Connects by a connection string, with default settings.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn to(dsn: &str) -> anyhow::Result<Self> {
        Self::new(ParamsSource::dsn(dsn.into(), CONNECT_TIMEOUT))
    }

    /// Marks the server as a replica: reads may use it while it is in recovery.
    #[must_use]
    pub fn replica(mut self) -> Self {
        self.is_replica = true;
        self
    }

    /// The age from which on a pool replaces a connection.
    #[must_use]
    pub fn with_max_age(mut self, max_age: Duration) -> Self {
        self.max_age = max_age;
        self
    }

    /// What the connections are for: the message of each failure begins with it.
    #[must_use]
    pub fn with_purpose(mut self, purpose: &'static str) -> Self {
        self.purpose = Some(purpose);
        self
    }

    pub(crate) fn max_age(&self) -> Duration {
        self.max_age
    }

    /// The record of refused logins.
    #[must_use]
    pub fn logins(&self) -> Arc<Logins> {
        Arc::clone(&self.logins)
    }

    /// Opens a bare connection to the primary; the caller drives its traffic.
    ///
    /// # Errors
    /// If no host accepts the connection in time.
    pub(crate) async fn connect_bare(&self) -> Result<(Client, Traffic), Error> {
        self.open(SessionProfile::Listener, "").await
    }

    /// Opens a connection with the settings of its profile; a task of its own drives it.
    ///
    /// # Errors
    /// If no host accepts the connection, or the server refuses the settings.
    pub async fn connect(&self, profile: SessionProfile) -> Result<Client, Error> {
        let (client, traffic) = self.open(profile, &profile.session()).await?;
        // Ends when the client is dropped. A caller that waits on a broken connection gets the error.
        tokio::spawn(drive(traffic));
        Ok(client)
    }

    /// Opens a connection, and runs these statements over it.
    ///
    /// # Errors
    /// If no host accepts the connection in time, or the server refuses the statements.
    pub(crate) async fn open(
        &self,
        profile: SessionProfile,
        settings: &str,
    ) -> Result<(Client, Traffic), Error> {
        // Boxed, because the future of a handshake is large.
        let outcome = Box::pin(self.try_hosts(profile, settings)).await;
        self.logins.record(outcome.as_ref().err());
        outcome.map_err(|error| Error::Connect(Box::new(error.of(self.purpose))))
    }

    /// Asks the server to cancel the statement of a connection that [`Self::open`] opened.
    pub(crate) async fn cancel(&self, token: &CancelToken) {
        let Ok(params) = self.source.resolve(&process_env) else {
            return;
        };
        let limit = match params.connect_timeout {
            Some(Limit::After(limit)) => limit,
            _ => CONNECT_TIMEOUT,
        };
        let Ok(tls) = params.tls.connector() else {
            return;
        };
        match timeout(limit, token.cancel_query(tls)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = chain(&error), "cannot cancel a statement"),
            Err(_) => tracing::debug!("cannot cancel a statement: no answer"),
        }
    }

    async fn try_hosts(
        &self,
        profile: SessionProfile,
        settings: &str,
    ) -> Result<Session, ConnectError> {
        let mut params = self.source.resolve(&process_env)?;
        if params.shuffle {
            params.targets.shuffle(&mut rand::rng());
        }
        let mut attempt = Attempt {
            tls: params.tls.connector()?,
            limit: params
                .connect_timeout
                .unwrap_or(Limit::After(CONNECT_TIMEOUT)),
            settings,
            params: &params,
        };
        let primary = profile.needs_primary(self.is_replica);
        let mut failed = ConnectError::new();
        for demand in Demand::of(params.target_session, primary) {
            for target in &params.targets {
                let password = self.source.password(&params, target)?;
                for address in attempt.addresses(target, &mut failed).await {
                    let tried = attempt.address(target, address, password.as_ref(), demand);
                    if let Some(session) = tried.await.unpack(&mut failed) {
                        return Ok(session);
                    }
                    if failed.is_login_refused() {
                        return Err(failed);
                    }
                }
            }
        }
        Err(failed)
    }
}
