//! `status_indexer.state`: the definition's parameters, and how far the column is to be believed.

use tokio_postgres::types::Type;

use super::column;
use crate::error::Error;
use crate::pg::{Db, SHORT, name_of};
use crate::status::RunKey;

/// The version of the definition that this binary knows.
pub const DEFINITION_VERSION: i32 = 1;

const LOAD: &str = "\
-- state.load
select cutoff_secs, definition_version, generation, valid_since is not null as valid,
       status_indexer.triggers_enabled() as triggers_enabled,
       scan_flow_id, scan_run_number, scan_compared, scan_corrected, runs_table, metadata_table
  from status_indexer.state";

/// For a migration's own transaction.
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

const ADVANCE: &str = "\
-- state.advance
update status_indexer.state
   set scan_flow_id = $2,
       scan_run_number = $3,
       scan_started_at = coalesce(scan_started_at, clock_timestamp()),
       scan_compared = scan_compared + $4,
       scan_corrected = scan_corrected + $5
 where generation = $1
returning valid_since is not null as valid";

const FINISH: &str = "\
-- state.finish
update status_indexer.state
   set valid_since = coalesce(valid_since, clock_timestamp()),
       scan_flow_id = null,
       scan_run_number = null,
       scan_started_at = null,
       scan_compared = 0,
       scan_corrected = 0
 where generation = $1
   and (valid_since is not null or status_indexer.triggers_enabled())
returning generation";

/// The row is locked first, so that the condition holds when it is invalidated.
const BEGIN_ANEW: &str = "\
-- state.begin_anew
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The cutoff in force, seconds.
    pub cutoff_secs: i64,
    /// The definition in force.
    pub definition_version: i32,
    /// What a pass over all runs must begin and end in, to bless the column.
    pub generation: i64,
    /// Whether the column may be believed.
    pub believable: bool,
    /// Whether all triggers are there and fire; without them a pass proves nothing.
    pub listening: bool,
    /// The last run that the pass has compared.
    pub pass_position: Option<RunKey>,
    /// Runs that it has compared.
    pub pass_compared: i64,
    /// Runs that it has corrected.
    pub pass_corrected: i64,
    /// The runs' table, quoted, as migrated.
    pub runs_table: String,
    /// The metadata's table, quoted, as migrated.
    pub metadata_table: String,
}

/// Reads the state.
///
/// # Errors
/// If the call fails; where the schema is not installed, its remedy is to migrate.
pub async fn load(db: &Db) -> Result<State, Error> {
    let row = db.query_one(LOAD, &[], SHORT).await?;
    let name = name_of(LOAD);
    let flow_id: Option<String> = column(&row, name, "scan_flow_id")?;
    let run_number: Option<i64> = column(&row, name, "scan_run_number")?;
    Ok(State {
        cutoff_secs: column(&row, name, "cutoff_secs")?,
        definition_version: column(&row, name, "definition_version")?,
        generation: column(&row, name, "generation")?,
        believable: column(&row, name, "valid")?,
        listening: column(&row, name, "triggers_enabled")?,
        pass_position: flow_id.zip(run_number).map(|(flow_id, run_number)| RunKey {
            flow_id,
            run_number,
        }),
        pass_compared: column(&row, name, "scan_compared")?,
        pass_corrected: column(&row, name, "scan_corrected")?,
        runs_table: column(&row, name, "runs_table")?,
        metadata_table: column(&row, name, "metadata_table")?,
    })
}

/// Puts another cutoff in force. Every run is then looked at again, and until that is done the
/// column is not to be believed. True where it differed.
///
/// # Errors
/// If the call fails.
pub async fn adopt_cutoff(db: &Db, cutoff_secs: i64) -> Result<bool, Error> {
    let rows = db
        .query(ADOPT_CUTOFF, &[(&cutoff_secs, Type::INT8)], SHORT)
        .await?;
    Ok(!rows.is_empty())
}

/// Makes the position of a pass durable. Returns whether the column is believable by now; none
/// where the generation is over, and the pass must begin anew.
///
/// # Errors
/// If the call fails.
pub async fn advance(
    db: &Db,
    generation: i64,
    position: &RunKey,
    compared: i64,
    corrected: i64,
) -> Result<Option<bool>, Error> {
    let rows = db
        .query(
            ADVANCE,
            &[
                (&generation, Type::INT8),
                (&position.flow_id, Type::TEXT),
                (&position.run_number, Type::INT8),
                (&compared, Type::INT8),
                (&corrected, Type::INT8),
            ],
            SHORT,
        )
        .await?;
    rows.first()
        .map(|row| column(row, name_of(ADVANCE), "valid"))
        .transpose()
}

/// Ends a pass: the column is believable, and the next pass begins at the first run. False where
/// the generation is over, or a trigger is missing so that the column cannot become believable.
///
/// # Errors
/// If the call fails.
pub async fn finish(db: &Db, generation: i64) -> Result<bool, Error> {
    let rows = db
        .query(FINISH, &[(&generation, Type::INT8)], SHORT)
        .await?;
    Ok(!rows.is_empty())
}

/// Has the next first pass begin at the first run, and ends those that are under way: behind them,
/// something was not heard.
///
/// # Errors
/// If the call fails.
pub async fn begin_anew(db: &Db, generation: i64) -> Result<(), Error> {
    db.query(BEGIN_ANEW, &[(&generation, Type::INT8)], SHORT)
        .await
        .map(drop)
}
