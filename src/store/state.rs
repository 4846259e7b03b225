//! `status_indexer.state`: the parameters of the definition, and whether the column is valid.

use tokio_postgres::types::Type;

use super::{Store, column};
use crate::error::Error;
use crate::pg::{SHORT, name_of};
use crate::status::RunKey;

/// The version of the definition that this binary knows.
pub const DEFINITION_VERSION: i32 = 1;

const LOAD: &str = "\
-- state.load
select cutoff_secs, definition_version, generation, believable_since is not null as believable,
       status_indexer.listening() as listening,
       pass_flow_id, pass_run_number, pass_compared, pass_corrected, runs_table, metadata_table
  from status_indexer.state";

/// What a statement sets that invalidates the column: no scan that has begun can make it valid, and the
/// next one begins at the first run.
macro_rules! invalidated {
    () => {
        "generation = greatest(generation + 1, (extract(epoch from clock_timestamp()) * 1000000)::bigint),
       believable_since = null,
       pass_flow_id = null,
       pass_run_number = null,
       pass_started_at = null,
       pass_compared = 0,
       pass_corrected = 0"
    };
}

/// For a transaction of a migration.
pub(crate) const INVALIDATE: &str = concat!(
    "update status_indexer.state
   set ",
    invalidated!(),
    ";"
);

const ADOPT_CUTOFF: &str = concat!(
    "\
-- state.adopt_cutoff
update status_indexer.state
   set cutoff_secs = $1,
       ",
    invalidated!(),
    "
 where cutoff_secs <> $1
returning generation"
);

const CHECKPOINT: &str = "\
-- state.checkpoint
update status_indexer.state
   set pass_flow_id = $2,
       pass_run_number = $3,
       pass_started_at = coalesce(pass_started_at, clock_timestamp()),
       pass_compared = pass_compared + $4,
       pass_corrected = pass_corrected + $5
 where generation = $1
returning believable_since is not null as believable";

const COMPLETE_SCAN: &str = "\
-- state.complete_scan
update status_indexer.state
   set believable_since = coalesce(believable_since, clock_timestamp()),
       pass_flow_id = null,
       pass_run_number = null,
       pass_started_at = null,
       pass_compared = 0,
       pass_corrected = 0
 where generation = $1
   and (believable_since is not null or status_indexer.listening())
returning generation";

const RESTART_BACKFILL: &str = concat!(
    "\
-- state.restart_backfill
update status_indexer.state
   set ",
    invalidated!(),
    "
 where generation = $1
   and believable_since is null"
);

/// The one row of `status_indexer.state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The cutoff in force, seconds.
    pub cutoff_secs: i64,
    /// The version of the definition in force.
    pub definition_version: i32,
    /// Grows whenever the column is invalidated; a scan makes the column valid only in the generation in
    /// which it began.
    pub generation: i64,
    /// Whether the column is valid.
    pub valid: bool,
    /// Whether all triggers exist and fire; without them no scan makes the column valid.
    pub triggers_enabled: bool,
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
}

impl Store {
    /// Reads the state.
    ///
    /// # Errors
    /// If the call fails; where the schema is not installed, the remedy is to migrate.
    pub async fn load_state(&self) -> Result<State, Error> {
        let row = self.db.query_one(LOAD, &[], SHORT).await?;
        let name = name_of(LOAD);
        let flow_id: Option<String> = column(&row, name, "pass_flow_id")?;
        let run_number: Option<i64> = column(&row, name, "pass_run_number")?;
        Ok(State {
            cutoff_secs: column(&row, name, "cutoff_secs")?,
            definition_version: column(&row, name, "definition_version")?,
            generation: column(&row, name, "generation")?,
            valid: column(&row, name, "believable")?,
            triggers_enabled: column(&row, name, "listening")?,
            scan_position: flow_id.zip(run_number).map(|(flow_id, run_number)| RunKey {
                flow_id,
                run_number,
            }),
            scan_compared: column(&row, name, "pass_compared")?,
            scan_corrected: column(&row, name, "pass_corrected")?,
            runs_table: column(&row, name, "runs_table")?,
            metadata_table: column(&row, name, "metadata_table")?,
        })
    }

    /// Puts another cutoff in force, which invalidates the column until every run has been compared
    /// again. True if the cutoff differed.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn adopt_cutoff(&self, cutoff_secs: i64) -> Result<bool, Error> {
        let params = [(&cutoff_secs as _, Type::INT8)];
        let rows = self.db.query(ADOPT_CUTOFF, &params, SHORT).await?;
        Ok(!rows.is_empty())
    }

    /// Makes the position of a scan durable. Returns whether the column is valid by now; none if the
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
            .map(|row| column(row, name_of(CHECKPOINT), "believable"))
            .transpose()
    }

    /// Completes a scan: the column is valid, and the next scan begins at the first run. False if the
    /// generation is over, or if a trigger is missing so that the column cannot become valid.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn complete_scan(&self, generation: i64) -> Result<bool, Error> {
        let params = [(&generation as _, Type::INT8)];
        let rows = self.db.query(COMPLETE_SCAN, &params, SHORT).await?;
        Ok(!rows.is_empty())
    }

    /// Ends the backfills in progress and makes the next one begin at the first run, because events
    /// behind their position may have been lost.
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
