//! Opens sessions and sets what every one of ours needs, whatever the role's defaults are.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Connection, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::pool::SHORT;
use super::tls::{TlsError, TlsParams};
use crate::error::Error;

/// What a session is for; decides its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Short calls of the stages. Commits asynchronously: a status is written in the transaction
    /// that takes its queue row, so a crash of the server undoes both or neither.
    Work,
    /// The same calls by a pass at full speed. Commits flush what they wrote, here alone: about a
    /// megabyte at a time, which otherwise the next heartbeat's commit would have to wait for.
    Pass,
    /// The LISTEN session, which also holds the lead.
    Listen,
    /// Changes of the schema: no limit on time, because an index takes as long as it takes.
    Migrate,
    /// Reads of people's commands, on a standby too.
    Read,
    /// One look by a person's command, in a transaction that it opens: whatever lends the connection
    /// out again, such as a transaction pooler, lends none of our settings with it.
    Look,
}

/// Whether a connection is a session of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SessionMode {
    /// Find out at start.
    Auto,
    /// Connections are sessions: LISTEN and session locks work.
    Session,
    /// Connections change hands between transactions (`PgBouncer`'s `pool_mode = transaction`).
    Transaction,
}

/// How long a connection attempt may take unless configured.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The server's own limit on a statement of the stages. The client gives up later, on its own clock.
const STATEMENT_TIMEOUT: &str = "30s";

/// Whose entry makes the pending list of an index on tags this long moves all of it into the index,
/// with the rows of its batch held. With the server's 4 MB the longest of a backfill's calls, of 100
/// runs each, took 82 ms, with these 34, and all of them together as long.
const GIN_PENDING_LIST_LIMIT: &str = "256kB";

/// The same of a pass at full speed, which has the list moved before it is so long, with no row held
/// (`status_indexer.flush_pending_list`). The server's default.
const GIN_PENDING_LIST_LIMIT_OF_A_PASS: &str = "4MB";

/// A LISTEN session that says nothing for so long is that of a frozen process: the server ends it
/// (since PostgreSQL 14), and with it the lead.
const LISTEN_IDLE_TIMEOUT: &str = "5s";

/// Opens connections with one set of parameters.
#[derive(Clone)]
pub struct Connector {
    config: Config,
    tls: MakeRustlsConnect,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// The half of a connection that carries its traffic and yields its notifications.
pub(crate) type Traffic = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

impl Connector {
    /// Takes the driver's parameters and those of TLS.
    ///
    /// # Errors
    /// If the parameters of TLS cannot be used.
    pub fn new(mut config: Config, tls: &TlsParams) -> Result<Self, TlsError> {
        let (ssl_mode, tls) = tls.connector()?;
        config.ssl_mode(ssl_mode);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        config
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(3))
            .keepalives_retries(3);
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(Duration::from_secs(10));
        }
        if config.get_application_name().is_none() {
            config.application_name("status-indexer");
        }
        Ok(Self { config, tls })
    }

    /// The driver's parameters.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The driver's TLS connector.
    #[must_use]
    pub(crate) fn tls(&self) -> MakeRustlsConnect {
        self.tls.clone()
    }

    /// Opens a bare connection; the caller drives its traffic.
    ///
    /// # Errors
    /// If no connection can be had, or no answer comes in time.
    pub(crate) async fn connect_bare(&self) -> Result<(Client, Traffic), Error> {
        // The driver's own limit ends with the TCP connection; a peer that took it may still be silent.
        match timeout(self.attempt(), self.config.connect(self.tls.clone())).await {
            Ok(connected) => connected.map_err(|error| Error::Connect(Box::new(error))),
            Err(_) => Err(Error::Timeout {
                statement: "session.connect",
                after: self.attempt(),
            }),
        }
    }

    /// How long it may take to connect, all hosts tried.
    pub(crate) fn attempt(&self) -> Duration {
        let hosts = self.config.get_hosts().len().max(1);
        let each = self.config.get_connect_timeout().copied();
        each.unwrap_or(CONNECT_TIMEOUT)
            .saturating_mul(u32::try_from(hosts).unwrap_or(u32::MAX))
    }

    /// Opens a connection that a task of its own drives, with the settings of its purpose.
    ///
    /// # Errors
    /// If no connection can be had, or it refuses the settings.
    pub async fn connect(&self, purpose: Purpose) -> Result<Client, Error> {
        let (client, traffic) = self.connect_bare().await?;
        // Ends when the client is dropped; what breaks a connection is told to the caller waiting on it.
        tokio::spawn(async move {
            if let Err(error) = traffic.await {
                tracing::debug!(error = crate::error::chain(&error), "connection closed");
            }
        });
        let statement = "session.settings";
        match timeout(SHORT, client.batch_execute(&settings(purpose))).await {
            Ok(set) => set.map_err(|source| Error::Postgres { statement, source })?,
            Err(_) => {
                return Err(Error::Timeout {
                    statement,
                    after: SHORT,
                });
            }
        }
        Ok(client)
    }
}

/// The statements that make a session fit for its purpose.
pub(crate) fn settings(purpose: Purpose) -> String {
    if purpose == Purpose::Look {
        return LOOK_SETTINGS.to_owned();
    }
    let mut sql = String::from(
        "-- session.settings
set default_transaction_isolation = 'read committed';
set search_path = pg_catalog, pg_temp;
set jit = off;
set client_min_messages = warning;
set tcp_keepalives_idle = 10;
set tcp_keepalives_interval = 3;
set tcp_keepalives_count = 3;
set tcp_user_timeout = 10000;
",
    );
    if purpose != Purpose::Read {
        sql.push_str("set default_transaction_read_only = off;\n");
    }
    match purpose {
        Purpose::Work | Purpose::Pass => {
            let (flushed, pending) = match purpose {
                Purpose::Pass => ("local", GIN_PENDING_LIST_LIMIT_OF_A_PASS),
                _ => ("off", GIN_PENDING_LIST_LIMIT),
            };
            sql.push_str(&format!("set synchronous_commit = {flushed};\n"));
            sql.push_str("set lock_timeout = '100ms';\n");
            sql.push_str("set idle_in_transaction_session_timeout = '5s';\n");
            sql.push_str(&format!("set statement_timeout = '{STATEMENT_TIMEOUT}';\n"));
            sql.push_str(&format!("set gin_pending_list_limit = '{pending}';\n"));
        }
        Purpose::Listen => {
            sql.push_str("set lock_timeout = '100ms';\nset statement_timeout = '5s';\n");
            // `set` would fail on servers that do not know it.
            sql.push_str(&format!(
                "select set_config(name, '{LISTEN_IDLE_TIMEOUT}', false) from pg_settings where name = 'idle_session_timeout';\n"
            ));
        }
        Purpose::Migrate => {
            sql.push_str("set statement_timeout = 0;\nset lock_timeout = 0;\n");
            sql.push_str("set idle_in_transaction_session_timeout = '60s';\n");
        }
        Purpose::Read => {
            sql.push_str("set lock_timeout = '5s';\nset statement_timeout = '10min';\n");
        }
        Purpose::Look => {}
    }
    sql
}

/// What opens a transaction that only reads.
pub(crate) const LOOK_SETTINGS: &str = "\
-- session.settings
begin isolation level read committed read only;
set local search_path = pg_catalog, pg_temp;
set local jit = off;
set local lock_timeout = '5s';
set local statement_timeout = '10min';";

/// What opens each transaction where settings of a session would fall to somebody else.
pub(crate) const TRANSACTION_SETTINGS: &str = "\
-- transaction.settings
begin isolation level read committed read write;
set local search_path = pg_catalog, pg_temp;
set local lock_timeout = '100ms';
set local statement_timeout = '30s';
set local idle_in_transaction_session_timeout = '5s';
set local synchronous_commit = off;
set local gin_pending_list_limit = '256kB';";
