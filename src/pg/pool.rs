//! The pool, and the one call that every statement of the stages goes through.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolBuilder, PoolError, RecyclingMethod,
    Runtime,
};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};
use tokio_util::sync::CancellationToken;

use super::session::{Connector, SessionMode, SessionProfile};
use super::timeouts::{POOL_WAIT, SHORT};
use crate::error::{Error, chain};
use crate::metrics::Metrics;

/// A value and its type. The type is explicit, so that a statement needs neither a round trip to
/// prepare it nor a name on the server, which a transaction pooler would lose.
pub type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// The stages' way into the database.
#[derive(Debug, Clone)]
pub struct Db {
    pool: Pool,
    mode: SessionMode,
    metrics: Metrics,
    stop: CancellationToken,
    /// Begins each transaction where a connection does not keep its settings.
    begin: Arc<str>,
}

/// The common part of all pools: connections open on demand, within a known time, with the settings
/// of their profile where connections are sessions.
pub(crate) fn pool_of(
    connector: &Connector,
    mode: SessionMode,
    size: usize,
    profile: SessionProfile,
) -> PoolBuilder {
    let manager = Manager::from_config(
        connector.config().clone(),
        connector.tls(),
        ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        },
    );
    let builder = Pool::builder(manager)
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .create_timeout(Some(connector.attempt() + SHORT));
    if mode == SessionMode::Transaction {
        return builder;
    }
    let settings: Arc<str> = profile.session().into();
    builder.post_create(Hook::async_fn(move |client, _| {
        let settings = Arc::clone(&settings);
        Box::pin(async move {
            client
                .batch_execute(&settings)
                .await
                .map_err(HookError::Backend)
        })
    }))
}

/// The error of a pool that has no connection to give.
pub(crate) fn connect_error(error: PoolError) -> Error {
    match error {
        PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => {
            Error::Connect(Box::new(error))
        }
        other => Error::Connect(Box::new(other)),
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

    /// A pool for reads alone, which also works on a standby and through a transaction pooler.
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
    /// If there is no connection, the server refuses the statement, or no answer comes in time.
    pub async fn query(
        &self,
        sql: &'static str,
        params: &[Param<'_>],
        limit: Duration,
    ) -> Result<Vec<Row>, Error> {
        let outcome = self.try_query(sql, params, limit).await;
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
        let client = client.map_err(connect_error)?;
        let call = async {
            match self.mode {
                SessionMode::Transaction => in_transaction(&client, &self.begin, sql, params).await,
                _ => client.query_typed(sql, params).await,
            }
        };
        let abandoned = tokio::select! {
            answer = call => return answer.map_err(|source| Error::Postgres { statement, source }),
            () = tokio::time::sleep(limit) => Error::Timeout { statement, after: limit },
            () = self.stop.cancelled(), if limit > SHORT => Error::Stopping,
        };
        // The answer may still come, and the next call must not take it for its own.
        drop(Object::take(client));
        Err(abandoned)
    }

    fn count(&self, error: &Error) {
        let state = error.sqlstate().map_or("none", |code| code.code());
        self.metrics
            .db_errors_total
            .with_label_values(&[state])
            .inc();
        if error.is_lock_timeout() {
            self.metrics.lock_timeouts_total.inc();
        }
        if error.is_unreachable() {
            self.metrics.up.set(0);
        }
    }
}

async fn in_transaction(
    client: &Client,
    begin: &str,
    sql: &str,
    params: &[Param<'_>],
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let answer = match client.batch_execute(begin).await {
        Ok(()) => client.query_typed(sql, params).await,
        Err(error) => Err(error),
    };
    let end = if answer.is_ok() { "commit" } else { "rollback" };
    if let Err(error) = client.batch_execute(end).await {
        tracing::debug!(error = chain(&error), "a transaction did not end cleanly");
        return answer.and(Err(error));
    }
    answer
}
