//! The pool, and the one call that every statement of the stages goes through.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool::Runtime;
use deadpool::managed::{self, PoolBuilder, PoolError, RecycleError, TimeoutType};
use deadpool_postgres::ClientWrapper;
use futures_util::future::join3;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};
use tokio_util::sync::CancellationToken;

use super::connect::{Connector, drive};
use super::session::{SessionMode, SessionProfile};
use super::timeouts::{POOL_WAIT, SHORT};
use crate::error::Error;
use crate::metrics::Metrics;

/// A value and its type. The type is explicit, so that a statement needs neither a round trip to
/// prepare it nor a name on the server, which a transaction pooler would lose.
pub type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// The pool through which the stages call the database.
#[derive(Debug, Clone)]
pub struct Db {
    pool: Pool,
    mode: SessionMode,
    metrics: Metrics,
    stop: CancellationToken,
    /// The statements that begin each transaction if connections do not keep their settings.
    begin: Arc<str>,
}

/// A pool of connections with the settings of their profile.
pub(crate) type Pool = managed::Pool<Manager>;

/// A connection that returns to its pool when it is dropped.
pub(crate) type PooledClient = managed::Object<Manager>;

/// Opens and recycles the connections of a pool. `deadpool-postgres` has a manager of its own,
/// whose errors can only be the driver's; the errors of this one contain the reason for each host.
#[derive(Debug)]
pub(crate) struct Manager {
    connector: Connector,
    profile: SessionProfile,
    settings: String,
}

impl managed::Manager for Manager {
    type Type = ClientWrapper;
    type Error = Error;

    async fn create(&self) -> Result<ClientWrapper, Error> {
        let opened = self.connector.open(self.profile, &self.settings).await;
        let (client, traffic) = opened?;
        Ok(ClientWrapper::new(client, tokio::spawn(drive(traffic))))
    }

    async fn recycle(
        &self,
        client: &mut ClientWrapper,
        metrics: &managed::Metrics,
    ) -> managed::RecycleResult<Error> {
        if client.is_closed() {
            return Err(RecycleError::message("the connection is closed"));
        }
        if metrics.age() >= self.connector.max_age() {
            return Err(RecycleError::message("the connection is old"));
        }
        Ok(())
    }
}

/// The common part of all pools: connections open on demand, with the settings of their profile
/// where connections are sessions.
pub(crate) fn pool_of(
    connector: &Connector,
    mode: SessionMode,
    size: usize,
    profile: SessionProfile,
) -> PoolBuilder<Manager> {
    let manager = Manager {
        connector: connector.clone(),
        profile,
        settings: match mode {
            SessionMode::Transaction => String::new(),
            _ => profile.session(),
        },
    };
    Pool::builder(manager)
        .max_size(size)
        .runtime(Runtime::Tokio1)
}

/// The error of a pool that could not provide a connection.
pub(crate) fn connect_error(error: PoolError<Error>) -> Error {
    match error {
        PoolError::Backend(error) => error,
        other => Error::Connect(other.to_string().into()),
    }
}

impl Db {
    /// Makes a pool of `size` connections, which open on demand.
    #[must_use]
    pub fn new(
        connector: &Connector,
        mode: SessionMode,
        size: usize,
        profile: SessionProfile,
        metrics: Metrics,
    ) -> Self {
        let pool = pool_of(connector, mode, size, profile)
            .wait_timeout(Some(POOL_WAIT))
            .build()
            .expect("the builder has the runtime that its timeouts need");
        Self {
            pool,
            mode,
            metrics,
            stop: CancellationToken::new(),
            begin: profile.begin().into(),
        }
    }

    /// A pool for reads only, which also works on a standby and through a transaction pooler.
    #[must_use]
    pub fn for_reads(connector: &Connector, size: usize, metrics: Metrics) -> Self {
        Self::new(
            connector,
            SessionMode::Transaction,
            size,
            SessionProfile::ReadOnlyTransaction,
            metrics,
        )
    }

    /// The same pool, but after `stop` no call begins, and long calls, which only read, are
    /// abandoned; short calls are awaited.
    #[must_use]
    pub fn until(mut self, stop: CancellationToken) -> Self {
        self.stop = stop;
        self
    }

    /// Runs one statement as a transaction of its own and returns its rows.
    ///
    /// # Errors
    /// If no connection can be had, the server refuses the statement, or the answer takes too long.
    pub async fn query(
        &self,
        sql: &'static str,
        params: &[Param<'_>],
        limit: Duration,
    ) -> Result<Vec<Row>, Error> {
        let start = Instant::now();
        let outcome = self.try_query(sql, params, limit).await;
        let name = [super::name_of(sql)];
        let metrics = &self.metrics;
        metrics.db_calls_total.with_label_values(&name).inc();
        metrics
            .db_call_seconds_total
            .with_label_values(&name)
            .inc_by(start.elapsed().as_secs_f64());
        match &outcome {
            Ok(_) => self.metrics.up.set(1),
            Err(Error::Stopping) => {}
            Err(error) => self.count(error),
        }
        outcome
    }

    /// Runs one statement that returns exactly one row.
    ///
    /// # Errors
    /// As [`Self::query`], and if there is no row.
    pub async fn query_one(
        &self,
        sql: &'static str,
        params: &[Param<'_>],
        limit: Duration,
    ) -> Result<Row, Error> {
        let mut rows = self.query(sql, params, limit).await?;
        rows.pop().ok_or_else(|| Error::Answer {
            statement: super::name_of(sql),
            source: "no row".into(),
        })
    }

    /// Whether connections are sessions, as detected at start.
    #[must_use]
    pub fn mode(&self) -> SessionMode {
        self.mode
    }

    /// Sets the gauge of connections.
    pub fn observe_pool(&self) {
        let status = self.pool.status();
        let idle = status.available;
        let used = status.size.saturating_sub(idle);
        #[expect(clippy::cast_precision_loss, reason = "a pool has few connections")]
        for (state, count) in [("idle", idle), ("used", used)] {
            self.metrics
                .pool_connections
                .with_label_values(&[state])
                .set(count as f64);
        }
    }

    /// Closes all connections; later calls fail.
    pub fn close(&self) {
        self.pool.close();
    }

    async fn try_query(
        &self,
        sql: &'static str,
        params: &[Param<'_>],
        limit: Duration,
    ) -> Result<Vec<Row>, Error> {
        let statement = super::name_of(sql);
        let Some(client) = self.stop.run_until_cancelled(self.pool.get()).await else {
            return Err(Error::Stopping);
        };
        let client = client.map_err(|error| {
            if matches!(error, PoolError::Timeout(TimeoutType::Wait)) {
                self.metrics.pool_timeouts_total.inc();
            }
            connect_error(error)
        })?;
        let call = async {
            match self.mode {
                SessionMode::Transaction => in_transaction(&client, &self.begin, sql, params).await,
                _ => client.query_typed(sql, params).await,
            }
        };
        let abandoned = tokio::select! {
            answer = call => {
                if matches!(&answer, Err(error) if is_read_only(error)) {
                    // The primary became a standby. Other connections may lead to it too.
                    drop(PooledClient::take(client));
                    self.pool.retain(|_, _| false);
                }
                return answer.map_err(|source| Error::Postgres { statement, source });
            }
            () = tokio::time::sleep(limit) => Error::Timeout { statement, after: limit },
            () = self.stop.cancelled(), if limit > SHORT => Error::Stopping,
        };
        // The answer may still arrive, and the next call must not receive it as its own.
        drop(PooledClient::take(client));
        Err(abandoned)
    }

    fn count(&self, error: &Error) {
        self.metrics.count_db_error(error);
        if error.is_lock_timeout() {
            self.metrics.lock_timeouts_total.inc();
        }
        if error.is_unreachable() {
            self.metrics.up.set(0);
        }
    }
}

fn is_read_only(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
}

async fn in_transaction(
    client: &Client,
    begin: &str,
    sql: &str,
    params: &[Param<'_>],
) -> Result<Vec<Row>, tokio_postgres::Error> {
    // All three are sent at once, in this order: one round trip, and no transaction that stays open
    // because this process is frozen. After an error, `commit` rolls back.
    let (begun, answer, ended) = join3(
        client.batch_execute(begin),
        client.query_typed(sql, params),
        client.batch_execute("commit"),
    )
    .await;
    begun?;
    let rows = answer?;
    ended?;
    Ok(rows)
}
