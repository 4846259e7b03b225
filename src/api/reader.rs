//! Runs the read API's statements: on a pool of its own, which may belong to a read replica.
//!
//! Owns the choice between a prepared statement and a transaction, the retry, and the answer for a
//! failed read. Promises that the database's text stays in the log. Called by the handlers.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use futures_util::future::join3;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row, RowStream};

use super::admission::{Admission, Lease, Limits, Permit, WhenFull};
use super::budget::{Budget, Share};
use super::error::ApiError;
use super::statement::{Memory, Plan, Statement};
use crate::error::{Error, Remedy, chain};
use crate::metrics::Metrics;
use crate::pg::{
    Connector, Pool, PooledClient, SessionMode, SessionProfile, connect_error, pool_of,
};

/// How long the reader waits for an answer beyond the server's own statement timeout.
const GRACE: Duration = Duration::from_secs(3);

const TABLE: &str = "\
-- api.table
select runs_table
  from status_indexer.state";

/// Runs the API's statements.
pub struct Reader {
    pool: Pool,
    connector: Connector,
    mode: SessionMode,
    limits: Limits,
    profile: SessionProfile,
    admission: Admission,
    /// The runs' table, quoted.
    table: Mutex<Arc<str>>,
    /// Whether the last read failed.
    failing: AtomicBool,
    metrics: Metrics,
}

/// The rows of an answer, with the memory that they take.
#[derive(Debug, Default)]
pub(super) struct Rows {
    rows: Vec<Row>,
    bytes: usize,
    share: Option<Share>,
    excess: Option<Excess>,
}

/// Why an answer is not kept.
#[derive(Debug, Clone, Copy)]
enum Excess {
    /// It alone would take more than half of the budget.
    TooLarge {
        /// The size that is possible, bytes.
        limit: usize,
    },
    /// Other answers have taken the budget.
    NothingLeft,
}

impl std::ops::Deref for Rows {
    type Target = [Row];

    fn deref(&self) -> &[Row] {
        &self.rows
    }
}

impl Rows {
    /// The size of all rows.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn receive(&mut self, row: Row, memory: &Memory) {
        let size = row.raw_size_bytes();
        let before = self.bytes;
        self.bytes = before.saturating_add(size);
        match memory {
            Memory::Any => self.rows.push(row),
            Memory::AtMost(limit) => {
                if before < *limit {
                    self.rows.push(row);
                }
            }
            Memory::Budget(_) if self.excess.is_some() => {}
            Memory::Budget(budget) => match self.take(size, budget) {
                Ok(()) => self.rows.push(row),
                Err(excess) => {
                    *self = Self {
                        excess: Some(excess),
                        ..Self::default()
                    }
                }
            },
        }
    }

    /// Takes memory for a row. The other half of the budget is for the answer made of the rows.
    fn take(&mut self, size: usize, budget: &Budget) -> Result<(), Excess> {
        let limit = budget.total() / 2;
        if self.bytes > limit {
            return Err(Excess::TooLarge { limit });
        }
        let share = budget.try_share(size).ok_or(Excess::NothingLeft)?;
        match &mut self.share {
            Some(all) => all.add(share),
            all => *all = Some(share),
        }
        Ok(())
    }

    fn ok(self) -> Result<Self, ApiError> {
        match self.excess {
            None => Ok(self),
            Some(Excess::TooLarge { limit }) => Err(ApiError::too_large(limit)),
            Some(Excess::NothingLeft) => Err(ApiError::slow_clients()),
        }
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// Makes a pool, whose connections open on demand. `table` is the runs' table, quoted.
    #[must_use]
    pub fn new(
        connector: &Connector,
        mode: SessionMode,
        limits: Limits,
        table: &str,
        metrics: Metrics,
    ) -> Self {
        let profile = SessionProfile::Api {
            statement_timeout: limits.statement,
        };
        Self {
            pool: pool_of(connector, mode, limits.pool_max, profile)
                .build()
                .expect("the builder has the runtime that its timeouts need"),
            connector: connector.clone(),
            mode,
            limits,
            profile,
            admission: Admission::new(limits),
            table: Mutex::new(table.into()),
            failing: AtomicBool::new(false),
            metrics,
        }
    }

    /// Runs a statement, a second time where that may succeed at once.
    pub(super) async fn query(
        &self,
        when_full: WhenFull,
        statement: &Statement,
    ) -> Result<Rows, ApiError> {
        let permit = self.admission.permit(when_full).await?;
        let outcome = match self.attempt(&permit, statement, false).await {
            Err(error) if is_retryable(&error) => {
                tracing::debug!(error = chain(&error), "a failed read is retried");
                self.prepare_retry(&permit, &error).await;
                self.attempt(&permit, statement, false).await
            }
            Err(error) if is_of_conversion(&error) => self.attempt(&permit, statement, true).await,
            outcome => outcome,
        };
        match outcome {
            Ok(rows) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("reads succeed again");
                }
                rows.ok()
            }
            Err(error) => Err(self.report(&error)),
        }
    }

    /// Closes all connections. Later calls fail.
    pub fn close(&self) {
        self.pool.close();
        self.admission.close();
    }

    fn table(&self) -> Arc<str> {
        Arc::clone(&self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn prepare_retry(&self, permit: &Permit, error: &Error) {
        if error.remedy() == Remedy::Migrate {
            self.reload_table(permit).await;
        } else {
            // The cause has probably broken the idle connections too.
            self.pool.retain(|_, _| false);
        }
    }

    /// Reads the table's name again: the indexer may have been reinstalled on another table.
    async fn reload_table(&self, permit: &Permit) {
        let statement = Statement::fixed(TABLE, Vec::new());
        if let Ok(rows) = self.attempt(permit, &statement, false).await
            && let Some(name) = rows
                .first()
                .and_then(|row| row.try_get::<_, String>(0).ok())
        {
            *self.table.lock().unwrap_or_else(PoisonError::into_inner) = name.into();
        }
    }

    async fn attempt(
        &self,
        permit: &Permit,
        statement: &Statement,
        sendable: bool,
    ) -> Result<Rows, Error> {
        let client = self.pool.get().await.map_err(connect_error)?;
        let lease = Lease::new(client, Arc::clone(permit), self.connector.clone());
        let limit = self.limits.statement + GRACE;
        let Ok(answer) = timeout(limit, self.send(lease.client(), statement, sendable)).await
        else {
            return Err(Error::Timeout {
                statement: "api.query",
                after: limit,
            });
        };
        match &answer {
            Err(error) if poisons_connection(error) => lease.discard(),
            _ => lease.release(),
        }
        answer.map_err(|source| Error::Postgres {
            statement: "api.query",
            source,
        })
    }

    async fn send(
        &self,
        client: &PooledClient,
        statement: &Statement,
        sendable: bool,
    ) -> Result<Rows, tokio_postgres::Error> {
        let sql = statement.sql(&self.table(), sendable);
        if self.mode != SessionMode::Transaction && statement.plan == Plan::Generic {
            let prepared = client
                .prepare_typed_cached(&sql, &statement.types())
                .await?;
            let rows = client.query_raw(&prepared, statement.values()).await?;
            return collect(rows, &statement.memory).await;
        }
        let begin = begin(self.mode, self.profile, statement.plan);
        in_transaction(client, &begin, &sql, statement).await
    }

    /// Counts and logs a failed read. An outage is logged once, not for each request.
    fn report(&self, error: &Error) -> ApiError {
        self.metrics.count_db_error(error);
        let code = error.sqlstate().map_or("none", SqlState::code);
        // Class 22, data exceptions: caused by a value of the request.
        if code.starts_with("22") {
            tracing::debug!(error = chain(error), "the database rejected a filter value");
            return ApiError::bad_request("a filter value is not valid for its field");
        }
        if !self.failing.swap(true, Ordering::Relaxed) {
            tracing::warn!(error = chain(error), "a read failed");
        }
        let timed_out =
            code == SqlState::QUERY_CANCELED.code() || matches!(error, Error::Timeout { .. });
        ApiError::unavailable(if timed_out {
            "the database took too long: narrow the filter"
        } else {
            "the database does not answer"
        })
    }
}

/// Begins a transaction with the settings for a plan.
fn begin(mode: SessionMode, profile: SessionProfile, plan: Plan) -> String {
    let mut sql = match mode {
        SessionMode::Transaction => profile.begin(),
        _ => String::from("-- api.begin\nbegin read only;\n"),
    };
    let (cache, nodes) = match plan {
        Plan::Generic => ("force_generic_plan", "off"),
        Plan::Custom => ("force_custom_plan", "on"),
    };
    sql.push_str(&format!(
        "set local plan_cache_mode = {cache};
set local enable_sort = {nodes};
set local enable_bitmapscan = {nodes}"
    ));
    sql
}

/// Sends all three parts at once, in one round trip. If the first fails, the server does not
/// execute the statement. The commit ends a failed transaction too.
async fn in_transaction(
    client: &Client,
    begin: &str,
    sql: &str,
    statement: &Statement,
) -> Result<Rows, tokio_postgres::Error> {
    let rows = async {
        let rows = client
            .query_typed_raw(sql, statement.typed_values())
            .await?;
        collect(rows, &statement.memory).await
    };
    let (begun, rows, ended) = join3(
        client.batch_execute(begin),
        rows,
        client.batch_execute("-- api.end\ncommit"),
    )
    .await;
    begun?;
    let rows = rows?;
    ended?;
    Ok(rows)
}

/// Receives all rows and keeps those for which there is memory.
async fn collect(rows: RowStream, memory: &Memory) -> Result<Rows, tokio_postgres::Error> {
    let mut stream = pin!(rows);
    let mut rows = Rows::default();
    while let Some(row) = stream.try_next().await? {
        rows.receive(row, memory);
    }
    Ok(rows)
}

/// Whether the next statement on the same connection may fail for the same reason: a broken
/// connection, or a prepared statement that no longer fits the schema.
fn poisons_connection(error: &tokio_postgres::Error) -> bool {
    error.code().is_none_or(|code| {
        *code == SqlState::FEATURE_NOT_SUPPORTED
            || *code == SqlState::INVALID_SQL_STATEMENT_NAME
            || code.code().starts_with("42")
    })
}

/// Whether a text could not be converted between the database's encoding and UTF-8: one of the rows,
/// or a value of the request.
fn is_of_conversion(error: &Error) -> bool {
    error.sqlstate().is_some_and(|code| {
        *code == SqlState::CHARACTER_NOT_IN_REPERTOIRE
            || *code == SqlState::UNTRANSLATABLE_CHARACTER
    })
}

/// Whether the same read may succeed at once: on a new connection, or on a table of another name.
fn is_retryable(error: &Error) -> bool {
    match error {
        Error::Postgres { source, .. } => {
            poisons_connection(source)
                || source.is_closed()
                || source.code().is_some_and(|code| {
                    // The server shuts down or restarts; a conflict with recovery on a standby.
                    ["57P01", "40001"].contains(&code.code())
                })
        }
        _ => false,
    }
}
