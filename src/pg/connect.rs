//! Opens connections as libpq does: one host, and one address of it, after the other.
//!
//! Promises that each address has its own limit, which covers the whole of an attempt (TCP, TLS,
//! start-up, authentication, the check of the server's role, the session's settings), and that a
//! connection that writes is never one to a server in recovery. Only a refused login ends the attempt
//! before the last host. Everything that connects goes through [`Connector`].

use std::fmt;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rand::seq::SliceRandom as _;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::net::lookup_host;
use tokio::time::timeout;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{CancelToken, Client, Config, Connection, SimpleQueryMessage, Socket};

use super::logins::Logins;
use super::params::{Limit, Params, ParamsError, ParamsSource, Target, TargetSession, process_env};
use super::session::SessionProfile;
use super::timeouts::{CONNECT_TIMEOUT, MAX_AGE};
use super::tls::{HandshakeError, Tls, TlsError, TlsMode};
use crate::error::{Error, chain};

/// The half of a connection that carries its traffic and yields its notifications.
pub(crate) type Traffic = Connection<Socket, <Tls as MakeTlsConnect<Socket>>::Stream>;

type Session = (Client, Traffic);

const ROLE: &str = "\
-- session.role
select pg_catalog.pg_is_in_recovery(),
       pg_catalog.current_setting('transaction_read_only')";

/// Opens connections with one set of parameters. A clone shares the record of refused logins.
#[derive(Debug, Clone)]
pub struct Connector {
    source: ParamsSource,
    is_replica: bool,
    max_age: Duration,
    logins: Arc<Logins>,
}

/// No connection to any of the hosts; says why for each.
#[derive(Debug)]
pub struct ConnectError(Vec<Failure>);

#[derive(Debug)]
struct Failure {
    /// The address; none if the parameters themselves cannot be used.
    place: Option<String>,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
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

    fn is_login_refused(&self) -> bool {
        self.code()
            .is_some_and(|code| code.code().starts_with("28"))
    }

    fn is_handshake(&self) -> bool {
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
    /// Whether a server refused the login.
    #[must_use]
    pub fn is_login_refused(&self) -> bool {
        let last = self.0.last();
        last.is_some_and(|failure| failure.cause.is_login_refused())
    }

    fn push(&mut self, place: &str, cause: Cause) {
        self.0.push(Failure {
            place: Some(place.to_owned()),
            cause,
        });
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, failure) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            f.write_str(separator)?;
            if let Some(place) = &failure.place {
                write!(f, "{place}: ")?;
            }
            match failure.cause {
                // The source says the rest.
                Cause::Driver(_) if at + 1 == self.0.len() => f.write_str("no connection")?,
                ref cause => write!(f, "{cause}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0.last()?.cause {
            Cause::Driver(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ParamsError> for ConnectError {
    fn from(error: ParamsError) -> Self {
        Self(vec![Failure {
            place: None,
            cause: Cause::Params(error),
        }])
    }
}

impl From<TlsError> for ConnectError {
    fn from(error: TlsError) -> Self {
        Self(vec![Failure {
            place: None,
            cause: Cause::Tls(error),
        }])
    }
}

/// What a connection needs of its server.
#[derive(Debug, Clone, Copy)]
struct Demand {
    session: TargetSession,
    /// The primary, whatever the parameters say.
    primary: bool,
}

impl Demand {
    /// One, or two that are tried in turn.
    fn of(session: TargetSession, primary: bool) -> Vec<Self> {
        let sessions = match session {
            TargetSession::PreferStandby if primary => vec![TargetSession::Any],
            TargetSession::PreferStandby => vec![TargetSession::Standby, TargetSession::Any],
            session => vec![session],
        };
        let demand = |session| Self { session, primary };
        sessions.into_iter().map(demand).collect()
    }

    fn is_none(self) -> bool {
        !self.primary && self.session == TargetSession::Any
    }

    fn refuse(self, in_recovery: bool, read_only: bool) -> Option<&'static str> {
        if self.primary && in_recovery {
            return Some("the server is in recovery (a standby), and the primary is needed");
        }
        match self.session {
            TargetSession::ReadWrite if in_recovery || read_only => {
                Some("the server is read-only, and target_session_attrs is read-write")
            }
            TargetSession::ReadOnly if !in_recovery && !read_only => {
                Some("the server accepts writes, and target_session_attrs is read-only")
            }
            TargetSession::Primary if in_recovery => {
                Some("the server is in recovery, and target_session_attrs is primary")
            }
            TargetSession::Standby if !in_recovery => {
                Some("the server is not in recovery, and the parameters prefer a standby")
            }
            _ => None,
        }
    }
}

impl Connector {
    /// Checks the parameters, with the files that they name. Does not connect.
    ///
    /// # Errors
    /// If they cannot be used.
    pub fn new(source: ParamsSource) -> anyhow::Result<Self> {
        source.resolve(&process_env)?.tls.connector()?;
        Ok(Self {
            source,
            is_replica: false,
            max_age: MAX_AGE,
            logins: Arc::default(),
        })
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
        outcome.map_err(|error| Error::Connect(Box::new(error)))
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
        let mut failed = ConnectError(Vec::new());
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

/// Drives a connection until its client is dropped.
pub(crate) async fn drive(traffic: Traffic) {
    if let Err(error) = traffic.await {
        tracing::debug!(error = chain(&error), "connection closed");
    }
}

/// What the attempts of one connection have in common.
struct Attempt<'a> {
    params: &'a Params,
    tls: Tls,
    limit: Limit,
    settings: &'a str,
}

/// The outcome at one address: a session, or failures with their places.
struct Tried(Result<Session, Vec<(String, Cause)>>);

impl Tried {
    fn unpack(self, failed: &mut ConnectError) -> Option<Session> {
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
    /// The addresses of a host; one without an address for a Unix socket.
    async fn addresses(&self, target: &Target, failed: &mut ConnectError) -> Vec<Option<IpAddr>> {
        if target.is_unix() {
            return vec![None];
        }
        if let Some(address) = target.hostaddr {
            return vec![Some(address)];
        }
        let name = target.name();
        let lookup = within(self.limit, lookup_host((name.as_str(), target.port))).await;
        let cause = match lookup {
            Ok(Ok(found)) => {
                let mut found: Vec<_> = found.map(|address| Some(address.ip())).collect();
                if self.params.shuffle {
                    found.shuffle(&mut rand::rng());
                }
                if !found.is_empty() {
                    return found;
                }
                Cause::Lookup(std::io::Error::other("it has no address"))
            }
            Ok(Err(error)) => Cause::Lookup(error),
            Err(limit) => Cause::NoAnswer(limit),
        };
        failed.push(&place(target, None), cause);
        Vec::new()
    }

    /// Tries one address, within the limit.
    async fn address(
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
                let config = self.config(target, address, password, *mode);
                self.tls = self.tls.unused();
                let cause = match self.session(&config, demand).await {
                    Ok(session) => return Some(session),
                    Err(cause) => cause,
                };
                let may_retry = match mode {
                    SslMode::Disable => cause.is_login_refused(),
                    SslMode::Prefer => {
                        self.tls.is_used() && (cause.is_login_refused() || cause.is_handshake())
                    }
                    _ => false,
                };
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
        let row = role.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((row.get(0) == Some("t"), row.get(1) == Some("on")))
            }
            _ => None,
        });
        if let Some(problem) = row.and_then(|(recovery, read)| demand.refuse(recovery, read)) {
            return Err(Cause::Role(problem));
        }
        settings.map_err(Cause::Driver)?;
        Ok((client, traffic))
    }

    /// The driver's parameters for one address.
    fn config(
        &self,
        target: &Target,
        address: Option<IpAddr>,
        password: Option<&SecretString>,
        ssl_mode: SslMode,
    ) -> Config {
        let params = self.params;
        let mut config = Config::new();
        config
            .host(target.name())
            .port(target.port)
            .user(&params.user)
            .application_name(&params.application_name)
            .channel_binding(params.channel_binding)
            .ssl_mode(ssl_mode)
            .keepalives(params.keepalives.enabled);
        if let Some(address) = address {
            config.hostaddr(address);
        }
        if let Some(dbname) = &params.dbname {
            config.dbname(dbname);
        }
        if let Some(password) = password {
            config.password(password.expose_secret());
        }
        if let Some(options) = &params.options {
            config.options(options);
        }
        if params.tls.direct {
            config.ssl_negotiation(SslNegotiation::Direct);
        }
        if let Some(idle) = params.keepalives.idle {
            config.keepalives_idle(idle);
        }
        if let Some(interval) = params.keepalives.interval {
            config.keepalives_interval(interval);
        }
        if let Some(count) = params.keepalives.count {
            config.keepalives_retries(count);
        }
        if let Some(limit) = params.tcp_user_timeout {
            config.tcp_user_timeout(limit);
        }
        config
    }
}

/// The driver's modes to try in turn: it knows neither libpq's `allow`, nor the second try of
/// `prefer`. There is no TLS over a Unix socket.
fn modes(target: &Target, mode: TlsMode) -> &'static [SslMode] {
    match mode {
        _ if target.is_unix() => &[SslMode::Disable],
        TlsMode::Disable => &[SslMode::Disable],
        TlsMode::Allow => &[SslMode::Disable, SslMode::Require],
        TlsMode::Prefer => &[SslMode::Prefer, SslMode::Disable],
        TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => &[SslMode::Require],
    }
}

fn place(target: &Target, address: Option<IpAddr>) -> String {
    let (name, port) = (target.name(), target.port);
    match address {
        Some(address) if address.to_string() != name => format!("{name} ({address}):{port}"),
        _ => format!("{name}:{port}"),
    }
}

/// The future's output, or the limit that it exceeded.
async fn within<T>(limit: Limit, future: impl Future<Output = T>) -> Result<T, Duration> {
    match limit {
        Limit::Unlimited => Ok(future.await),
        Limit::After(limit) => timeout(limit, future).await.map_err(|_| limit),
    }
}

/// Drives a connection until a call over it is complete; none if the connection ends before.
async fn with_traffic<T>(traffic: &mut Traffic, call: impl Future<Output = T>) -> Option<T> {
    let mut call = pin!(call);
    let mut open = true;
    poll_fn(move |context| {
        loop {
            if let Poll::Ready(answer) = call.as_mut().poll(context) {
                return Poll::Ready(Some(answer));
            }
            if !open {
                return Poll::Ready(None);
            }
            match traffic.poll_message(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(_))) => {}
                // The call's own error says more.
                Poll::Ready(Some(Err(_)) | None) => open = false,
            }
        }
        // What arrived may have completed the call.
        call.as_mut().poll(context).map(Some)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_writes_needs_the_primary_whatever_the_parameters_say() {
        for session in [
            TargetSession::Any,
            TargetSession::ReadWrite,
            TargetSession::ReadOnly,
            TargetSession::Primary,
            TargetSession::Standby,
            TargetSession::PreferStandby,
        ] {
            for demand in Demand::of(session, true) {
                assert!(demand.refuse(true, true).is_some(), "{session:?}");
            }
        }
    }

    #[test]
    fn target_session_attrs_mean_what_they_mean_in_libpq() {
        // In recovery, read-only by a setting, and neither.
        let servers = [(true, true), (false, true), (false, false)];
        for (session, accepted) in [
            (TargetSession::Any, [true, true, true]),
            (TargetSession::ReadWrite, [false, false, true]),
            (TargetSession::ReadOnly, [true, true, false]),
            (TargetSession::Primary, [false, true, true]),
            (TargetSession::Standby, [true, false, false]),
            (TargetSession::PreferStandby, [true, true, true]),
        ] {
            let demands = Demand::of(session, false);
            let accepts = servers.map(|(recovery, read_only)| {
                let refuses = |demand: &Demand| demand.refuse(recovery, read_only).is_some();
                !demands.iter().all(refuses)
            });
            assert_eq!(accepts, accepted, "{session:?}");
        }
    }
}
