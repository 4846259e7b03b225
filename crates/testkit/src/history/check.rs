//! Compares every run with its flow's model, once the environment has settled.
//!
//! Promises that a status counts as correct only if the oracle expects it at the time of the
//! snapshot in which it was read, and that a run whose status is about to change by time alone is
//! checked again after the change. Waits with a deadline; a failure shows the evidence. In
//! environments where only events change a status, an incorrect status is a failure as soon as the
//! queue is empty: that decision depends on what is stored, not on the speed of the machine. Called
//! by [`super::run`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use super::environment::Environment;
use super::failure::Failure;
use crate::drift::explain;
use crate::oracle::{Evidence, Expected, MICROS};
use crate::process;
use crate::wait::poll;

/// The check waits for changes by time that are due within this time.
const NEAR_MICROS: i128 = MICROS;

/// One snapshot of all runs.
struct Snapshot {
    /// The database's clock, microseconds.
    at: i128,
    /// Events in the queue.
    queued: i64,
    compared: usize,
    mismatches: Vec<Mismatch>,
}

/// A run that differs from its model.
struct Mismatch {
    history: usize,
    flow: String,
    run: i32,
    /// The stored heartbeat and status; none if the run is missing.
    stored: Option<(Option<i64>, String)>,
    /// The expected heartbeat and status; none if the run must not exist.
    expected: Option<(Expected, Evidence)>,
}

/// Waits until the queue is empty and every run equals its model; returns how many runs were
/// compared.
///
/// # Errors
/// If that does not happen.
pub async fn settled(
    environment: &Environment,
    first: usize,
    limit: Duration,
) -> Result<usize, Failure> {
    let snapshot = settled_after(environment, first, limit, 0).await?;
    Ok(snapshot.compared)
}

/// The same, after the deadlines of the next second have passed.
///
/// # Errors
/// If that does not happen.
pub async fn settled_past_deadlines(
    environment: &Environment,
    first: usize,
    limit: Duration,
) -> Result<usize, Failure> {
    let at = snapshot(environment).await?.at;
    let last = environment.histories[first..]
        .iter()
        .flat_map(|history| history.model.deadlines(environment.cutoff))
        .filter(|deadline| (at..at + NEAR_MICROS).contains(deadline))
        .max();
    let snapshot = settled_after(environment, first, limit, last.unwrap_or(0)).await?;
    Ok(snapshot.compared)
}

async fn settled_after(
    environment: &Environment,
    first: usize,
    limit: Duration,
    after: i128,
) -> Result<Snapshot, Failure> {
    let mut last = None;
    let outcome = poll(limit, async || {
        let snapshot = match snapshot(environment).await {
            Ok(snapshot) => snapshot,
            Err(failure) => return Some(Err(failure)),
        };
        let right = snapshot.queued == 0 && snapshot.mismatches.is_empty();
        if right && snapshot.at > after {
            return Some(Ok(snapshot));
        }
        if environment.events_only && snapshot.queued == 0 && !right {
            return Some(Err(failure(environment, first, &snapshot).await));
        }
        last = Some(snapshot);
        None
    })
    .await;
    match (outcome, last) {
        (Some(outcome), _) => outcome,
        (None, Some(last)) => Err(failure(environment, first, &last).await),
        (None, None) => Err(Failure::new(format!(
            "the runs could not be read within {limit:?}\n{}",
            process::tails()
        ))),
    }
}

async fn snapshot(environment: &Environment) -> Result<Snapshot, Failure> {
    // One statement is one snapshot, and its clock is read once.
    const SNAPSHOT: &str = "\
select (select (extract(epoch from clock_timestamp()) * 1000000)::int8),
       (select count(*) from status_indexer.queue),
       r.flow_id::text, r.run_number, r.last_heartbeat_ts, r.run_status
  from (values (1)) one
  left join runs_v3 r on true";
    let rows = environment.client().query(SNAPSHOT, &[]).await;
    let rows = rows.map_err(|error| Failure::new(format!("cannot read the runs: {error:?}")))?;
    let at = i128::from(rows[0].get::<_, i64>(0));
    let mut stored = BTreeMap::new();
    for row in &rows {
        if let Some(flow) = row.get::<_, Option<String>>(2) {
            let run: i32 = row.get(3);
            stored.insert((flow, run), (row.get(4), row.get(5)));
        }
    }
    let compared = stored.len();
    let mut mismatches = Vec::new();
    for (number, history) in environment.histories.iter().enumerate() {
        for (run, heartbeat) in &history.model.runs {
            let found: Option<(Option<i64>, String)> = stored.remove(&(history.flow.clone(), *run));
            let expected = history.model.expected(*run, at, environment.cutoff);
            let right = matches!(&found, Some((stored_heartbeat, status))
                if stored_heartbeat == heartbeat && status == expected.status.as_str());
            if !right {
                mismatches.push(Mismatch {
                    history: number,
                    flow: history.flow.clone(),
                    run: *run,
                    stored: found,
                    expected: Some((expected, history.model.evidence(*run))),
                });
            }
        }
    }
    for ((flow, run), found) in stored {
        let history = environment
            .histories
            .iter()
            .position(|one| one.flow == flow);
        mismatches.push(Mismatch {
            history: history.unwrap_or(0),
            flow,
            run,
            stored: Some(found),
            expected: None,
        });
    }
    Ok(Snapshot {
        at,
        queued: rows[0].get(1),
        compared,
        mismatches,
    })
}

async fn failure(environment: &Environment, first: usize, snapshot: &Snapshot) -> Failure {
    let mut text = format!(
        "{} events in the queue, {} of {} runs are wrong at {}\n",
        snapshot.queued,
        snapshot.mismatches.len(),
        snapshot.compared,
        snapshot.at
    );
    for mismatch in snapshot.mismatches.iter().take(3) {
        let (flow, run) = (&mismatch.flow, mismatch.run);
        let explained = explain(environment.client(), flow, run.into()).await;
        let _ = writeln!(
            text,
            "{flow}/{run}: stored {:?}, expected {:?}\n{explained}",
            mismatch.stored, mismatch.expected
        );
    }
    text += &process::tails();
    let histories: BTreeSet<usize> = snapshot
        .mismatches
        .iter()
        .filter_map(|mismatch| mismatch.history.checked_sub(first))
        .collect();
    Failure { text, histories }
}

/// Checks that exactly the written metadata rows exist: no trigger may lose a row.
///
/// # Errors
/// If they differ.
pub async fn check_rows(environment: &Environment, first: usize) -> Result<(), Failure> {
    const ROWS: &str = "\
select id, run_number::int, step_name::text, field_name::text, value, ts_epoch
  from metadata_v3
 where flow_id = $1
 order by id";
    for (number, history) in environment.histories[first..].iter().enumerate() {
        let rows = environment.client().query(ROWS, &[&history.flow]).await;
        let rows =
            rows.map_err(|error| Failure::new(format!("cannot read the rows: {error:?}")))?;
        let found = rows.iter().map(|row| {
            let id: i64 = row.get(0);
            (
                id - history.base,
                row.get::<_, i32>(1),
                row.get::<_, String>(2),
                row.get::<_, String>(3),
                row.get::<_, String>(4),
                row.get::<_, i64>(5),
            )
        });
        let expected = history.model.rows.iter().map(|(id, (run, row))| {
            let (step, field) = (row.step_name.clone(), row.field_name.clone());
            (*id, *run, step, field, row.value.to_string(), row.ts_ms)
        });
        let (found, expected): (Vec<_>, Vec<_>) = (found.collect(), expected.collect());
        if found != expected {
            return Err(Failure {
                text: format!("{}: rows {found:?}\nexpected {expected:?}", history.flow),
                histories: BTreeSet::from([number]),
            });
        }
    }
    Ok(())
}

/// Checks that the reconciler found no drift in histories whose every write fired triggers: there,
/// the pipeline wrote the statuses.
///
/// # Errors
/// If it did.
pub fn check_drift(environment: &Environment, first: usize) -> Result<(), Failure> {
    for line in environment.drift() {
        let flow = line["run.flow_id"].as_str().unwrap_or_default();
        let history = environment
            .histories
            .iter()
            .position(|one| one.flow == flow);
        let Some(number) = history.filter(|at| !environment.histories[*at].model.bypasses_triggers)
        else {
            continue;
        };
        return Err(Failure {
            text: format!(
                "drift where every write fired triggers: {line}\n{}",
                process::tails()
            ),
            histories: number.checked_sub(first).into_iter().collect(),
        });
    }
    Ok(())
}
