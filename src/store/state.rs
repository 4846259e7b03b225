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
select cutoff_secs, definition_version, generation, believable_since is not null as believable,
       status_indexer.listening() as listening,
       pass_flow_id, pass_run_number, pass_compared, pass_corrected, runs_table, metadata_table
  from status_indexer.state";

/// What a statement sets with which the column is not to be believed from now on, and no pass that has
/// begun can change that: the next one begins at the first run.
macro_rules! disbelieved {
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

/// For a migration's own transaction.
pub(crate) const DISBELIEVE: &str = concat!(
    "update status_indexer.state
   set ",
    disbelieved!(),
    ";"
);

const ADOPT_CUTOFF: &str = concat!(
    "\
-- state.adopt_cutoff
update status_indexer.state
   set cutoff_secs = $1,
       ",
    disbelieved!(),
    "
 where cutoff_secs <> $1
returning generation"
);

const ADVANCE: &str = "\
-- state.advance
update status_indexer.state
   set pass_flow_id = $2,
       pass_run_number = $3,
       pass_started_at = coalesce(pass_started_at, clock_timestamp()),
       pass_compared = pass_compared + $4,
       pass_corrected = pass_corrected + $5
 where generation = $1
returning believable_since is not null as believable";

const FINISH: &str = "\
-- state.finish
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

const BEGIN_ANEW: &str = concat!(
    "\
-- state.begin_anew
update status_indexer.state
   set ",
    disbelieved!(),
    "
 where generation = $1
   and believable_since is null"
);

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
    let flow_id: Option<String> = column(&row, name, "pass_flow_id")?;
    let run_number: Option<i64> = column(&row, name, "pass_run_number")?;
    Ok(State {
        cutoff_secs: column(&row, name, "cutoff_secs")?,
        definition_version: column(&row, name, "definition_version")?,
        generation: column(&row, name, "generation")?,
        believable: column(&row, name, "believable")?,
        listening: column(&row, name, "listening")?,
        pass_position: flow_id.zip(run_number).map(|(flow_id, run_number)| RunKey {
            flow_id,
            run_number,
        }),
        pass_compared: column(&row, name, "pass_compared")?,
        pass_corrected: column(&row, name, "pass_corrected")?,
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
        .map(|row| column(row, name_of(ADVANCE), "believable"))
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
