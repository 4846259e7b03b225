//! The pool, and the one call that every statement of the stages goes through.

use std::time::Duration;

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolBuilder, PoolError, RecyclingMethod,
    Runtime,
};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};
use tokio_util::sync::CancellationToken;

use super::batch::BatchSize;
use super::session::{
    Connector, LOOK_SETTINGS, Purpose, SessionMode, TRANSACTION_SETTINGS, settings,
};
use crate::error::{Error, Remedy, chain};
use crate::metrics::Metrics;

/// A value and its type. Types are stated, so that a statement needs no round trip to prepare it
/// and no name on the server, which a transaction pooler would lose.
pub type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// How long a stage waits for a connection of the pool to be free.
const POOL_WAIT: Duration = Duration::from_secs(5);

/// The client's limit on a call that should take milliseconds: a dead peer looks like silence.
pub(crate) const SHORT: Duration = Duration::from_secs(5);

/// The client's limit on a call that reads much; above the server's own of 30 s.
pub(crate) const LONG: Duration = Duration::from_secs(35);

/// The stages' way into the database.
#[derive(Debug, Clone)]
pub struct Db {
    pool: Pool,
    mode: SessionMode,
    metrics: Metrics,
    stop: CancellationToken,
    batch: BatchSize,
    /// What opens each transaction, where there are no sessions to set up once.
    opening: &'static str,
}

/// The beginning of any pool of ours: connections open on demand, and in a time that is known.
pub(crate) fn pool_of(connector: &Connector, size: usize) -> PoolBuilder {
    let manager = Manager::from_config(
        connector.config().clone(),
        connector.tls(),
        ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        },
    );
    Pool::builder(manager)
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .create_timeout(Some(connector.attempt() + SHORT))
}

impl Db {
    /// Makes a pool; connections open on demand.
    #[must_use]
    pub fn new(connector: &Connector, mode: SessionMode, size: usize, metrics: Metrics) -> Self {
        Self::with(connector, mode, size, metrics, Purpose::Work)
    }

    /// A pool for a pass at full speed.
    #[must_use]
    pub fn for_pass(
        connector: &Connector,
        mode: SessionMode,
        size: usize,
        metrics: Metrics,
    ) -> Self {
        Self::with(connector, mode, size, metrics, Purpose::Pass)
    }

    fn with(
        connector: &Connector,
        mode: SessionMode,
        size: usize,
        metrics: Metrics,
        purpose: Purpose,
    ) -> Self {
        let mut builder = pool_of(connector, size).wait_timeout(Some(POOL_WAIT));
        if mode != SessionMode::Transaction {
            builder = builder.post_create(Hook::async_fn(move |client, _| {
                Box::pin(async move {
                    client
                        .batch_execute(&settings(purpose))
                        .await
                        .map_err(HookError::Backend)
                })
            }));
        }
        let pool = builder
            .build()
            .expect("the builder has the runtime that its timeouts need");
        Self {
            pool,
            mode,
            metrics,
            stop: CancellationToken::new(),
            batch: BatchSize::up_to(match purpose {
                Purpose::Pass => BatchSize::MOST_OF_A_PASS,
                _ => BatchSize::MOST,
            }),
            opening: TRANSACTION_SETTINGS,
        }
    }

    /// A pool for reads alone, on a standby and through a transaction pooler too.
    #[must_use]
    pub fn for_reads(connector: &Connector, size: usize, metrics: Metrics) -> Self {
        let mut db = Self::new(connector, SessionMode::Transaction, size, metrics);
        db.opening = LOOK_SETTINGS;
        db
    }

    /// The same, but once told to stop nothing more is begun, and long calls, which only read, are
    /// given up; short ones are waited for.
    #[must_use]
    pub fn until(mut self, stop: CancellationToken) -> Self {
        self.stop = stop;
        self
    }

    /// Runs one statement as a transaction of its own and returns its rows.
    ///
    /// # Errors
    /// If no connection can be had, the server refuses the statement, or no answer comes in time.
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

    /// How connections behave, as found at start.
    #[must_use]
    pub fn mode(&self) -> SessionMode {
        self.mode
    }

    /// How many runs one call may judge.
    #[must_use]
    pub fn batch(&self) -> &BatchSize {
        &self.batch
    }

    /// Tells the metrics how many connections there are.
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
        let client = client.map_err(pool_error)?;
        let call = async {
            match self.mode {
                SessionMode::Transaction => {
                    in_transaction(&client, self.opening, sql, params).await
                }
                _ => client.query_typed(sql, params).await,
            }
        };
        let given_up = tokio::select! {
            answer = call => return answer.map_err(|source| Error::Postgres { statement, source }),
            () = tokio::time::sleep(limit) => Error::Timeout { statement, after: limit },
            () = self.stop.cancelled(), if limit > SHORT => Error::Stopping,
        };
        // Its answer may still come, and must not be taken for that of the next call.
        drop(Object::take(client));
        Err(given_up)
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
        // The objects were removed, or a restore left them out: nobody keeps the column now.
        if error.remedy() == Remedy::Migrate {
            self.metrics.believable.set(0);
        }
        let unreachable = match error {
            Error::Connect(_) | Error::Timeout { .. } => true,
            Error::Postgres { source, .. } => source.is_closed(),
            Error::Answer { .. } | Error::Stopping => false,
        };
        if unreachable {
            self.metrics.up.set(0);
        }
    }
}

async fn in_transaction(
    client: &Client,
    opening: &str,
    sql: &str,
    params: &[Param<'_>],
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let answer = match client.batch_execute(opening).await {
        Ok(()) => client.query_typed(sql, params).await,
        Err(error) => Err(error),
    };
    let end = if answer.is_ok() { "commit" } else { "rollback" };
    if let Err(error) = client.batch_execute(end).await {
        tracing::debug!(error = chain(&error), "a transaction was not ended cleanly");
        return answer.and(Err(error));
    }
    answer
}

fn pool_error(error: PoolError) -> Error {
    match error {
        PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => {
            Error::Connect(Box::new(error))
        }
        other => Error::Connect(Box::new(other)),
    }
}
