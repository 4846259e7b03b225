//! The read API's way into the database: a pool of its own, on the replica where there is one.
//!
//! Promises that nothing piles up: so many requests read at once, so many wait, the next is told to
//! come later. A request that is given up, because its client went away or no answer came in time,
//! takes its statement with it: the statement is cancelled, and its connection is never used again,
//! so that neither a late answer nor a late cancellation meets somebody else's request.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool_postgres::{Object, Pool};
use futures_util::future::join3;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::statement::{Plan, Statement};
use crate::error::{Error, Remedy, chain};
use crate::metrics::Metrics;
use crate::pg::{Connector, SessionMode, SessionProfile, connect_error, pool_of};

/// How long a request waits for its turn.
const TURN_WAIT: Duration = Duration::from_secs(5);

/// How much longer than the server's own limit a statement is waited for.
const GRACE: Duration = Duration::from_secs(3);

/// How long the cancellation of a statement may take.
const CANCEL_WAIT: Duration = Duration::from_secs(5);

const TABLE: &str = "\
-- api.table
select runs_table
  from status_indexer.state";

/// How many may read, how many may wait, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections.
    pub pool_max: usize,
    /// Requests that wait for one.
    pub queue: usize,
    /// A statement's time on the server.
    pub statement: Duration,
}

impl Limits {
    fn profile(self) -> SessionProfile {
        SessionProfile::Api {
            statement_timeout: self.statement,
        }
    }
}

/// Why there are no rows.
#[derive(Debug)]
pub(super) enum ReadError {
    /// Too many wait already, or it was waited for too long.
    Busy,
    /// The statement took longer than it may.
    Slow,
    /// A value of the request cannot be used as it is.
    Value,
    /// The database is away, or refuses.
    Database,
}

/// Whether a request that finds everything busy may be turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// It may.
    Short,
    /// It has begun to answer and cannot take that back.
    Long,
}

/// Runs the API's statements.
pub struct Reader {
    pool: Pool,
    tls: MakeRustlsConnect,
    mode: SessionMode,
    limits: Limits,
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// The runs' table, quoted.
    table: Mutex<Arc<str>>,
    failing: AtomicBool,
    metrics: Metrics,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Begins a transaction with the settings for its plan.
fn begin(mode: SessionMode, profile: SessionProfile, plan: Plan) -> String {
    let mut sql = match mode {
        SessionMode::Transaction => profile.begin(),
        _ => String::from("-- api.begin\nbegin read only;\n"),
    };
    let (cache, nodes) = match plan {
        Plan::Walk => ("force_generic_plan", "off"),
        Plan::ByValue => ("force_custom_plan", "on"),
    };
    sql.push_str(&format!(
        "set local plan_cache_mode = {cache};
set local enable_sort = {nodes};
set local enable_bitmapscan = {nodes}"
    ));
    sql
}

impl Reader {
    /// Makes a pool; connections open on demand. `table` is the runs' table, quoted.
    #[must_use]
    pub fn new(
        connector: &Connector,
        mode: SessionMode,
        limits: Limits,
        table: &str,
        metrics: Metrics,
    ) -> Self {
        let profile = limits.profile();
        let builder = pool_of(connector, mode, limits.pool_max, profile);
        Self {
            pool: builder
                .build()
                .expect("the builder has the runtime that its timeouts need"),
            tls: connector.tls(),
            mode,
            limits,
            turns: Arc::new(Semaphore::new(limits.pool_max)),
            waiting: AtomicUsize::new(0),
            table: Mutex::new(table.into()),
            failing: AtomicBool::new(false),
            metrics,
        }
    }

    /// Runs the statement that `build` makes for the runs' table. It is tried twice where the first
    /// failure is one of the connection or of what was known about the table.
    pub(super) async fn query(
        &self,
        patience: Patience,
        build: impl Fn(&str) -> Statement + Send + Sync,
    ) -> Result<Vec<Row>, ReadError> {
        let first = self.attempt(patience, &build(&self.table())).await;
        let error = match first {
            Err(Failure::Database(error)) if again(&error) => error,
            Ok(rows) => return Ok(self.well(rows)),
            Err(failure) => return Err(self.tell(failure)),
        };
        tracing::debug!(error = chain(&error), "a read is tried again");
        if error.remedy() == Remedy::Migrate {
            self.reload(patience).await;
        } else {
            // What ended one connection has probably ended the others that lie idle.
            self.pool.retain(|_, _| false);
        }
        match self.attempt(patience, &build(&self.table())).await {
            Ok(rows) => Ok(self.well(rows)),
            Err(failure) => Err(self.tell(failure)),
        }
    }

    /// Closes all connections; later calls fail.
    pub fn close(&self) {
        self.pool.close();
        self.turns.close();
    }

    fn table(&self) -> Arc<str> {
        Arc::clone(&self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Learns the table's name anew: the indexer may have been installed again, on another one.
    async fn reload(&self, patience: Patience) {
        let statement = Statement {
            sql: TABLE.to_owned(),
            params: Vec::new(),
            plan: Plan::ByValue,
        };
        if let Ok(rows) = self.attempt(patience, &statement).await
            && let Some(name) = rows
                .first()
                .and_then(|row| row.try_get::<_, String>(0).ok())
        {
            *self.table.lock().unwrap_or_else(PoisonError::into_inner) = name.into();
        }
    }

    async fn attempt(
        &self,
        patience: Patience,
        statement: &Statement,
    ) -> Result<Vec<Row>, Failure> {
        let turn = self.turn(patience).await?;
        let client = self
            .pool
            .get()
            .await
            .map_err(|error| Failure::Database(connect_error(error)))?;
        let mut lease = Lease {
            client: Some((client, turn)),
            tls: self.tls.clone(),
        };
        let limit = self.limits.statement + GRACE;
        match timeout(limit, self.send(lease.client(), statement)).await {
            Ok(answer) => {
                let sound = !matches!(&answer, Err(error) if spoils(error));
                lease.settle(sound);
                answer.map_err(|source| {
                    Failure::Database(Error::Postgres {
                        statement: "api.query",
                        source,
                    })
                })
            }
            Err(_) => Err(Failure::Database(Error::Timeout {
                statement: "api.query",
                after: limit,
            })),
        }
    }

    async fn turn(&self, patience: Patience) -> Result<OwnedSemaphorePermit, Failure> {
        if let Ok(turn) = Arc::clone(&self.turns).try_acquire_owned() {
            return Ok(turn);
        }
        let place = Place::in_line(&self.waiting);
        if patience == Patience::Short && place.ahead >= self.limits.queue {
            return Err(Failure::Busy);
        }
        match timeout(TURN_WAIT, Arc::clone(&self.turns).acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(Failure::Busy),
        }
    }

    async fn send(
        &self,
        client: &Object,
        statement: &Statement,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        if self.mode != SessionMode::Transaction && statement.plan == Plan::Walk {
            let types: Vec<Type> = statement
                .params
                .iter()
                .map(|(_, kind)| kind.clone())
                .collect();
            let prepared = client.prepare_typed_cached(&statement.sql, &types).await?;
            let values: Vec<&(dyn ToSql + Sync)> = statement
                .params
                .iter()
                .map(|(value, _)| &**value as &(dyn ToSql + Sync))
                .collect();
            return client.query(&prepared, &values).await;
        }
        let begin = begin(self.mode, self.limits.profile(), statement.plan);
        bracketed(client, &begin, statement).await
    }

    fn well(&self, rows: Vec<Row>) -> Vec<Row> {
        if self.failing.swap(false, Ordering::Relaxed) {
            tracing::info!("reads succeed again");
        }
        rows
    }

    /// Counts and logs; an outage is told once, not with each request that it fails.
    fn tell(&self, failure: Failure) -> ReadError {
        let Failure::Database(error) = failure else {
            return ReadError::Busy;
        };
        let code = error.sqlstate().map_or("none", SqlState::code);
        self.metrics
            .db_errors_total
            .with_label_values(&[code])
            .inc();
        // Data exceptions: the values are the request's.
        if code.starts_with("22") {
            tracing::debug!(error = chain(&error), "a value was refused");
            return ReadError::Value;
        }
        let slow =
            code == SqlState::QUERY_CANCELED.code() || matches!(error, Error::Timeout { .. });
        if !self.failing.swap(true, Ordering::Relaxed) {
            tracing::warn!(error = chain(&error), "a read failed");
        }
        if slow {
            ReadError::Slow
        } else {
            ReadError::Database
        }
    }
}

#[derive(Debug)]
enum Failure {
    Busy,
    Database(Error),
}

/// Sends all three at once: one round trip. The server skips the statement's work where the first
/// fails, and undoes what there is to undo at the last.
async fn bracketed(
    client: &Client,
    opening: &str,
    statement: &Statement,
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let values: Vec<(&(dyn ToSql + Sync), Type)> = statement
        .params
        .iter()
        .map(|(value, kind)| (&**value as &(dyn ToSql + Sync), kind.clone()))
        .collect();
    let (opened, rows, closed) = join3(
        client.batch_execute(opening),
        client.query_typed(&statement.sql, &values),
        client.batch_execute("-- api.end\ncommit"),
    )
    .await;
    opened?;
    let rows = rows?;
    closed?;
    Ok(rows)
}

/// Whether the next statement on the same connection may fail for the same reason: a statement
/// that was prepared on what is no longer so.
fn spoils(error: &tokio_postgres::Error) -> bool {
    error.code().is_none_or(|code| {
        *code == SqlState::FEATURE_NOT_SUPPORTED
            || *code == SqlState::INVALID_SQL_STATEMENT_NAME
            || code.code().starts_with("42")
    })
}

/// Whether the same read may succeed at once: on a new connection, or by another table's name.
fn again(error: &Error) -> bool {
    match error {
        Error::Postgres { source, .. } => {
            spoils(source)
                || source.is_closed()
                || source.code().is_some_and(|code| {
                    // A server that stops or restarts; a standby that had to make way.
                    ["57P01", "40001"].contains(&code.code())
                })
        }
        _ => false,
    }
}

/// One that waits for its turn, counted as long as it does.
struct Place<'a> {
    waiting: &'a AtomicUsize,
    ahead: usize,
}

impl<'a> Place<'a> {
    fn in_line(waiting: &'a AtomicUsize) -> Self {
        let ahead = waiting.fetch_add(1, Ordering::Relaxed);
        Self { waiting, ahead }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection and the turn to use it, with a statement under way until it is settled.
struct Lease {
    client: Option<(Object, OwnedSemaphorePermit)>,
    tls: MakeRustlsConnect,
}

impl Lease {
    fn client(&self) -> &Object {
        let (client, _) = self.client.as_ref().expect("it is not settled yet");
        client
    }

    /// The answer is complete: the connection goes back to the pool if it is sound.
    fn settle(&mut self, sound: bool) {
        if let Some((client, _)) = self.client.take()
            && !sound
        {
            drop(Object::take(client));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some((client, turn)) = self.client.take() else {
            return;
        };
        let token = client.cancel_token();
        let tls = self.tls.clone();
        let client = Object::take(client);
        // Nobody waits for it. The turn is held meanwhile, so that clients that come and go cannot
        // have more statements under way than there are connections.
        tokio::spawn(async move {
            let cancelled = timeout(CANCEL_WAIT, token.cancel_query(tls)).await;
            if !matches!(cancelled, Ok(Ok(()))) {
                tracing::debug!("a statement that was given up could not be cancelled");
            }
            drop((client, turn));
        });
    }
}
