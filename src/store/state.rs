//! `status_indexer.state`: the parameters of the definition, and whether the column is valid.

use serde::Deserialize;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::{Store, column, list};
use crate::error::Error;
use crate::pg::{SHORT, name_of};
use crate::status::RunKey;

/// The version of the definition that this binary supports.
pub const DEFINITION_VERSION: i32 = 1;

const LOAD: &str = "\
-- state.load
select cutoff_secs, definition_version, generation, valid_since is not null as valid,
       (select jsonb_agg(jsonb_build_object('kind', o.kind, 'detail', o.detail))
          from status_indexer.obstacles() o) as obstacles,
       scan_flow_id, scan_run_number, scan_compared, scan_corrected, runs_table, metadata_table,
       case
         when valid_since is null then 0
         -- Since the column is valid, if no bounds have been published. `greatest` ignores nulls.
         else greatest(0,
                       extract(epoch from c.now - coalesce(deadlines_until, valid_since)),
                       extract(epoch from deadlines_from - c.now))::float8
       end as read_bounds_outdated_secs
  from status_indexer.state
 cross join lateral (select clock_timestamp() as now) c";

/// Invalidates the column, within a transaction of a migration.
pub(crate) const INVALIDATE: &str = "select status_indexer.invalidate();";

/// `invalidate()` is volatile: it sees, and updates once more, the row that this statement has just
/// updated.
const ADOPT_CUTOFF: &str = "\
-- state.adopt_cutoff
with adopted as (
  update status_indexer.state
     set cutoff_secs = $1
   where cutoff_secs <> $1
  returning singleton
)
select status_indexer.invalidate() as generation
  from adopted";

const CHECKPOINT: &str = "\
-- state.checkpoint
update status_indexer.state
   set scan_flow_id = $2,
       scan_run_number = $3,
       scan_started_at = coalesce(scan_started_at, clock_timestamp()),
       scan_compared = scan_compared + $4,
       scan_corrected = scan_corrected + $5
 where generation = $1
returning valid_since is not null as valid";

const COMPLETE_SCAN: &str = "\
-- state.complete_scan
update status_indexer.state
   set valid_since = coalesce(valid_since, clock_timestamp()),
       scan_flow_id = null,
       scan_run_number = null,
       scan_started_at = null,
       scan_compared = 0,
       scan_corrected = 0
 where generation = $1
   and (valid_since is not null or not exists (select from status_indexer.obstacles()))
returning generation";

const INVALIDATE_NOW: &str = "\
-- state.invalidate
select status_indexer.invalidate()
  from status_indexer.state
 where valid_since is not null";

/// The row is locked first, so that the condition holds when it is invalidated.
const RESTART_BACKFILL: &str = "\
-- state.restart_backfill
with current as materialized (
  select singleton
    from status_indexer.state
   where generation = $1
     and valid_since is null
     for update
)
select status_indexer.invalidate() as generation
  from current";

/// The one row of `status_indexer.state`.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// The cutoff in force, seconds.
    pub cutoff_secs: i64,
    /// The version of the definition in force.
    pub definition_version: i32,
    /// Increases whenever the column is invalidated; a scan makes the column valid only in the
    /// generation in which it began.
    pub generation: i64,
    /// Whether the column is valid.
    pub valid: bool,
    /// The obstacles found: what keeps the indexer from seeing every row and every event. While
    /// there is any, no scan makes the column valid.
    pub obstacles: Vec<Obstacle>,
    /// The checkpoint: the last run that the scan in progress has compared.
    pub scan_position: Option<RunKey>,
    /// Runs that it has compared.
    pub scan_compared: i64,
    /// Runs that it has corrected.
    pub scan_corrected: i64,
    /// The runs table, quoted, as migrated.
    pub runs_table: String,
    /// The metadata table, quoted, as migrated.
    pub metadata_table: String,
    /// How long the bounds for readers have been outdated, seconds; 0 while they contain the present, or
    /// while the column is invalid.
    pub read_bounds_outdated_secs: f64,
}

/// Something that keeps the indexer from seeing every row and every event.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Obstacle {
    /// The kind of obstacle.
    pub kind: ObstacleKind,
    /// What it is, and what to do about it.
    pub detail: String,
}

/// The kinds that `status_indexer.obstacles()` reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObstacleKind {
    /// A trigger is missing, disabled or replaced.
    TriggersMissing,
    /// Row level security hides rows from this role.
    RowsHidden,
    /// The collation of an index has changed.
    CollationChanged,
}

impl State {
    /// Reads the state over a connection of the caller's own.
    ///
    /// # Errors
    /// As [`Store::load_state`].
    pub(crate) async fn load(client: &Client) -> Result<Self, Error> {
        let row = client.query_typed_one(LOAD, &[]).await;
        let row = row.map_err(|source| Error::Postgres {
            statement: name_of(LOAD),
            source,
        })?;
        Self::read(&row)
    }

    fn read(row: &Row) -> Result<Self, Error> {
        let name = name_of(LOAD);
        let flow_id: Option<String> = column(row, name, "scan_flow_id")?;
        let run_number: Option<i64> = column(row, name, "scan_run_number")?;
        Ok(Self {
            cutoff_secs: column(row, name, "cutoff_secs")?,
            definition_version: column(row, name, "definition_version")?,
            generation: column(row, name, "generation")?,
            valid: column(row, name, "valid")?,
            obstacles: list(row, name, "obstacles")?,
            scan_position: flow_id.zip(run_number).map(|(flow_id, run_number)| RunKey {
                flow_id,
                run_number,
            }),
            scan_compared: column(row, name, "scan_compared")?,
            scan_corrected: column(row, name, "scan_corrected")?,
            runs_table: column(row, name, "runs_table")?,
            metadata_table: column(row, name, "metadata_table")?,
            read_bounds_outdated_secs: column(row, name, "read_bounds_outdated_secs")?,
        })
    }

    /// The obstacles as one line; none if there are none.
    #[must_use]
    pub fn obstacles(&self) -> Option<String> {
        let details: Vec<&str> = self.obstacles.iter().map(|o| o.detail.as_str()).collect();
        (!details.is_empty()).then(|| details.join("; "))
    }
}

impl Store {
    /// Reads the state.
    ///
    /// # Errors
    /// If the call fails; where the schema is not installed, the remedy is to migrate.
    pub async fn load_state(&self) -> Result<State, Error> {
        let row = self.db.query_one(LOAD, &[], SHORT).await?;
        State::read(&row)
    }

    /// Stores another cutoff and invalidates the column, until every run has been compared again.
    /// True if the cutoff differed.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn adopt_cutoff(&self, cutoff_secs: i64) -> Result<bool, Error> {
        let params = [(&cutoff_secs as _, Type::INT8)];
        let rows = self.db.query(ADOPT_CUTOFF, &params, SHORT).await?;
        Ok(!rows.is_empty())
    }

    /// Saves the position of a scan. Returns whether the column is valid now; none if the
    /// generation is over, so that the scan must begin again.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn checkpoint(
        &self,
        generation: i64,
        position: &RunKey,
        compared: i64,
        corrected: i64,
    ) -> Result<Option<bool>, Error> {
        let params = [
            (&generation as _, Type::INT8),
            (&position.flow_id as _, Type::TEXT),
            (&position.run_number as _, Type::INT8),
            (&compared as _, Type::INT8),
            (&corrected as _, Type::INT8),
        ];
        let rows = self.db.query(CHECKPOINT, &params, SHORT).await?;
        rows.first()
            .map(|row| column(row, name_of(CHECKPOINT), "valid"))
            .transpose()
    }

    /// Invalidates the column, if it is valid: something was found that may have hidden events.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn invalidate(&self) -> Result<(), Error> {
        self.db.query(INVALIDATE_NOW, &[], SHORT).await.map(drop)
    }

    /// Completes a scan: the column is valid, and the next scan begins at the first run. False if
    /// the generation is over, or if there is an obstacle.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn complete_scan(&self, generation: i64) -> Result<bool, Error> {
        let params = [(&generation as _, Type::INT8)];
        let rows = self.db.query(COMPLETE_SCAN, &params, SHORT).await?;
        Ok(!rows.is_empty())
    }

    /// Ends the backfills in progress and makes the next one begin at the first run, because events
    /// of runs before their checkpoint may have been lost.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn restart_backfill(&self, generation: i64) -> Result<(), Error> {
        let params = [(&generation as _, Type::INT8)];
        self.db
            .query(RESTART_BACKFILL, &params, SHORT)
            .await
            .map(drop)
    }
}
