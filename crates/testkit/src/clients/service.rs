//! The statements that Metaflow's metadata service sends to its database.
//!
//! Owns their shape: each write is a statement and a transaction of its own; only tags change in a
//! `SERIALIZABLE` transaction, which is retried; a heartbeat advances by its interval or is not
//! written; times are those of the service's clock. Promises nothing about statuses. Called by
//! [`super::traffic`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Config, NoTls, Row};

const INSERT_FLOW: &str = "\
-- service.insert_flow
insert into flows_v3 (flow_id, user_name, ts_epoch, tags, system_tags)
values ($1, $2, $3, '[]', jsonb_build_array('user:' || $2))
on conflict do nothing";

const INSERT_RUN: &str = "\
-- service.insert_run
insert into runs_v3 (flow_id, user_name, ts_epoch, tags, system_tags, last_heartbeat_ts)
values ($1, $2, $3, '[]',
        jsonb_build_array('user:' || $2, 'metaflow_version:' || $5, 'runtime:dev'), $4)
returning run_number";

const HEARTBEAT: &str = "\
-- service.heartbeat
update runs_v3
   set last_heartbeat_ts = $3
 where flow_id = $1
   and run_number = $2
   and (last_heartbeat_ts is null or last_heartbeat_ts <= $3 - $4)";

const INSERT_STEP: &str = "\
-- service.insert_step
insert into steps_v3 (flow_id, run_number, step_name, user_name, ts_epoch, tags, system_tags)
values ($1, $2, $3, $4, $5, '[]', '[]')
on conflict do nothing";

const INSERT_TASK: &str = "\
-- service.insert_task
insert into tasks_v3 (flow_id, run_number, step_name, user_name, ts_epoch, tags, system_tags)
values ($1, $2, $3, $4, $5, '[]', '[]')
returning task_id";

const INSERT_METADATA: &str = "\
-- service.insert_metadata
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type,
                         user_name, ts_epoch, tags, system_tags)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, jsonb_build_array('attempt_id:' || $10), '[]')";

const READ_TAGS: &str = "\
-- service.read_tags
select tags
  from runs_v3
 where flow_id = $1
   and run_number = $2";

const WRITE_TAGS: &str = "\
-- service.write_tags
update runs_v3
   set tags = $3
 where flow_id = $1
   and run_number = $2";

/// A parameter with its type, so that no statement has to be prepared.
type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// A run, from its client's view.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// The flow's name.
    pub flow: &'static str,
    /// Who started it.
    pub user: &'static str,
    /// Its number.
    pub number: i64,
}

/// One metadata row to write.
#[derive(Debug, Clone, Copy)]
pub struct Datum<'a> {
    /// The step.
    pub step: &'a str,
    /// The task.
    pub task: i64,
    /// The field's name.
    pub field: &'a str,
    /// The field's type.
    pub kind: &'a str,
    /// Its value.
    pub value: &'a str,
    /// The attempt that it belongs to, from 0.
    pub attempt: u8,
}

/// The service: a pool of connections, and its clock.
#[derive(Debug, Clone)]
pub struct Service {
    pool: Pool,
    heartbeat: Duration,
}

impl Service {
    /// A service on this database, whose clients send heartbeats at this interval.
    #[must_use]
    pub fn new(mut config: Config, heartbeat: Duration) -> Self {
        config.application_name("metadata-service");
        let manager = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let pool = Pool::builder(Manager::from_config(config, NoTls, manager))
            .max_size(8)
            .runtime(Runtime::Tokio1)
            .create_timeout(Some(Duration::from_secs(10)))
            .build()
            .expect("the builder has the runtime that its timeouts need");
        Self { pool, heartbeat }
    }

    /// Creates the flow if it is new, and a run with its first heartbeat, given in seconds ahead of
    /// the clock; old clients send none.
    ///
    /// # Errors
    /// If a statement fails.
    pub async fn create_run(
        &self,
        flow: &'static str,
        user: &'static str,
        first_heartbeat: Option<i64>,
    ) -> Result<Run> {
        let client = self.client().await?;
        let (now_ms, heartbeat) = (now_ms(), first_heartbeat.map(|ahead| now_secs() + ahead));
        let version = if first_heartbeat.is_some() {
            "2.12.5"
        } else {
            "2.2.11"
        };
        let flow_row: [Param<'_>; 3] = [
            (&flow, Type::TEXT),
            (&user, Type::TEXT),
            (&now_ms, Type::INT8),
        ];
        call(&client, INSERT_FLOW, &flow_row).await?;
        let [flow_id, user_name, created] = flow_row;
        let run_row = [
            flow_id,
            user_name,
            created,
            (&heartbeat, Type::INT8),
            (&version, Type::TEXT),
        ];
        let number: i32 = first(&call(&client, INSERT_RUN, &run_row).await?, INSERT_RUN)?;
        Ok(Run {
            flow,
            user,
            number: number.into(),
        })
    }

    /// Writes a heartbeat, if the last one is old enough.
    ///
    /// # Errors
    /// If the statement fails.
    pub async fn heartbeat(&self, run: &Run) -> Result<()> {
        let every = i64::try_from(self.heartbeat.as_secs()).unwrap_or(i64::MAX);
        let params: [Param<'_>; 4] = [
            (&run.flow, Type::TEXT),
            (&run.number, Type::INT8),
            (&now_secs(), Type::INT8),
            (&every, Type::INT8),
        ];
        call(&self.client().await?, HEARTBEAT, &params)
            .await
            .map(drop)
    }

    /// Creates a step if it is new, and a task of it; returns the task's id.
    ///
    /// # Errors
    /// If a statement fails.
    pub async fn create_task(&self, run: &Run, step: &str) -> Result<i64> {
        let client = self.client().await?;
        let now_ms = now_ms();
        let params: [Param<'_>; 5] = [
            (&run.flow, Type::TEXT),
            (&run.number, Type::INT8),
            (&step, Type::TEXT),
            (&run.user, Type::TEXT),
            (&now_ms, Type::INT8),
        ];
        call(&client, INSERT_STEP, &params).await?;
        first(&call(&client, INSERT_TASK, &params).await?, INSERT_TASK)
    }

    /// Writes one metadata row.
    ///
    /// # Errors
    /// If the statement fails.
    pub async fn metadata(&self, run: &Run, datum: Datum<'_>) -> Result<()> {
        let attempt = datum.attempt.to_string();
        let params: [Param<'_>; 10] = [
            (&run.flow, Type::TEXT),
            (&run.number, Type::INT8),
            (&datum.step, Type::TEXT),
            (&datum.task, Type::INT8),
            (&datum.field, Type::TEXT),
            (&datum.value, Type::TEXT),
            (&datum.kind, Type::TEXT),
            (&run.user, Type::TEXT),
            (&now_ms(), Type::INT8),
            (&attempt, Type::TEXT),
        ];
        call(&self.client().await?, INSERT_METADATA, &params)
            .await
            .map(drop)
    }

    /// Adds a tag, retrying until no concurrent write conflicts; returns the number of conflicts.
    ///
    /// # Errors
    /// If a statement fails otherwise.
    pub async fn add_tag(&self, run: &Run, tag: &str) -> Result<u64> {
        let client = self.client().await?;
        let mut conflicts = 0;
        loop {
            match try_add_tag(&client, run, tag).await {
                Err(error) if is_serialization_failure(&error) => {
                    conflicts += 1;
                    plain(&client, "rollback").await?;
                }
                Ok(()) => return Ok(conflicts),
                Err(error) => {
                    // In the middle of a transaction: the pool must not reuse it.
                    drop(Object::take(client));
                    return Err(error);
                }
            }
        }
    }

    async fn client(&self) -> Result<Object> {
        self.pool.get().await.context("cannot connect")
    }
}

async fn try_add_tag(client: &Object, run: &Run, tag: &str) -> Result<()> {
    plain(client, "begin isolation level serializable").await?;
    let key: [Param<'_>; 2] = [(&run.flow, Type::TEXT), (&run.number, Type::INT8)];
    let rows = call(client, READ_TAGS, &key).await?;
    let mut tags: serde_json::Value = first(&rows, READ_TAGS)?;
    if let Some(list) = tags.as_array_mut() {
        list.push(tag.into());
    }
    let [flow, number] = key;
    call(client, WRITE_TAGS, &[flow, number, (&tags, Type::JSONB)]).await?;
    plain(client, "commit").await
}

fn is_serialization_failure(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<tokio_postgres::Error>();
    error.and_then(tokio_postgres::Error::code) == Some(&SqlState::T_R_SERIALIZATION_FAILURE)
}

async fn plain(client: &Object, sql: &'static str) -> Result<()> {
    client.batch_execute(sql).await.context(sql)
}

async fn call(client: &Object, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>> {
    client.query_typed(sql, params).await.context(name(sql))
}

fn first<'a, T: tokio_postgres::types::FromSql<'a>>(
    rows: &'a [Row],
    sql: &'static str,
) -> Result<T> {
    let row = rows
        .first()
        .with_context(|| format!("{} returned no row", name(sql)))?;
    row.try_get(0).context(name(sql))
}

/// A statement's name: its first line.
fn name(sql: &'static str) -> &'static str {
    let line = sql.lines().next().unwrap_or(sql);
    line.trim_start_matches("-- ")
}

fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// What the service writes as `last_heartbeat_ts`.
fn now_secs() -> i64 {
    i64::try_from(since_epoch().as_secs()).unwrap_or(i64::MAX)
}

/// What the service writes as `ts_epoch`.
fn now_ms() -> i64 {
    i64::try_from(since_epoch().as_millis()).unwrap_or(i64::MAX)
}
