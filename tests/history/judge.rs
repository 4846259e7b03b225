//! Holds every run against its ledger, once the site is quiet.
//!
//! Promises that a status counts as right only if it is the model's verdict at the instant of the
//! snapshot that it was read in, and that a run which is about to change by time alone is looked at
//! again after it has. Quiet is waited for with a deadline, and a failure shows the evidence.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::play::Failure;
use super::site::Site;
use crate::model::{Evidence, MICROS, Verdict};
use crate::support::daemon;
use crate::support::verdict::explain;

/// Changes by time that come so soon are waited for.
const NEAR_MICROS: i128 = MICROS;

const INTERVAL: Duration = Duration::from_millis(20);

/// One snapshot of all runs.
struct Look {
    /// The database's clock, microseconds.
    at: i128,
    /// Events that wait.
    waiting: i64,
    compared: usize,
    wrong: Vec<Wrong>,
}

/// A run that is not as it must be.
struct Wrong {
    history: usize,
    flow: String,
    run: i32,
    /// What is stored; none where the run is missing.
    stored: Option<(Option<i64>, String)>,
    /// What must be; none where the run must not be there.
    due: Option<(Verdict, Evidence)>,
}

/// Waits until no event waits and every run of the site is right; how many runs were compared.
pub(crate) async fn quiet(site: &Site, first: usize, patience: Duration) -> Result<usize, Failure> {
    let look = quiet_after(site, first, patience, 0).await?;
    Ok(look.compared)
}

/// The same once more, after what time is about to do by itself.
pub(crate) async fn quiet_in_time(
    site: &Site,
    first: usize,
    patience: Duration,
) -> Result<usize, Failure> {
    let at = look(site).await?.at;
    let played = site.histories[first..].iter();
    let last = played
        .flat_map(|history| history.ledger.deadlines(site.cutoff))
        .filter(|deadline| (at..at + NEAR_MICROS).contains(deadline))
        .max();
    let look = quiet_after(site, first, patience, last.unwrap_or(0)).await?;
    Ok(look.compared)
}

async fn quiet_after(
    site: &Site,
    first: usize,
    patience: Duration,
    after: i128,
) -> Result<Look, Failure> {
    let end = Instant::now() + patience;
    loop {
        daemon::check_all();
        let look = look(site).await?;
        if look.waiting == 0 && look.wrong.is_empty() && look.at > after {
            return Ok(look);
        }
        if Instant::now() > end {
            return Err(failure(site, first, &look).await);
        }
        sleep(INTERVAL).await;
    }
}

async fn look(site: &Site) -> Result<Look, Failure> {
    // One statement is one snapshot, and its clock is read once.
    const LOOK: &str = "\
select (select (extract(epoch from clock_timestamp()) * 1000000)::int8),
       (select count(*) from status_indexer.queue),
       r.flow_id::text, r.run_number, r.last_heartbeat_ts, r.run_status
  from (values (1)) one
  left join runs_v3 r on true";
    let rows = site.client().query(LOOK, &[]).await;
    let rows = rows.map_err(|error| Failure::new(format!("no look at the runs: {error:?}")))?;
    let at = i128::from(rows[0].get::<_, i64>(0));
    let mut stored = BTreeMap::new();
    for row in &rows {
        if let Some(flow) = row.get::<_, Option<String>>(2) {
            let run: i32 = row.get(3);
            stored.insert((flow, run), (row.get(4), row.get(5)));
        }
    }
    let compared = stored.len();
    let mut wrong = Vec::new();
    for (number, history) in site.histories.iter().enumerate() {
        for (run, beat) in &history.ledger.runs {
            let found: Option<(Option<i64>, String)> = stored.remove(&(history.flow.clone(), *run));
            let due = history.ledger.judge(*run, at, site.cutoff);
            let right = matches!(&found, Some((heartbeat, status))
                if heartbeat == beat && status == due.status.as_str());
            if !right {
                wrong.push(Wrong {
                    history: number,
                    flow: history.flow.clone(),
                    run: *run,
                    stored: found,
                    due: Some((due, history.ledger.evidence(*run))),
                });
            }
        }
    }
    for ((flow, run), found) in stored {
        let history = site.histories.iter().position(|one| one.flow == flow);
        wrong.push(Wrong {
            history: history.unwrap_or(0),
            flow,
            run,
            stored: Some(found),
            due: None,
        });
    }
    Ok(Look {
        at,
        waiting: rows[0].get(1),
        compared,
        wrong,
    })
}

async fn failure(site: &Site, first: usize, look: &Look) -> Failure {
    let mut text = format!(
        "{} events wait, {} of {} runs are wrong at {}\n",
        look.waiting,
        look.wrong.len(),
        look.compared,
        look.at
    );
    for wrong in look.wrong.iter().take(3) {
        let explained = explain(site.client(), &wrong.flow, wrong.run.into()).await;
        let _ = writeln!(
            text,
            "{}/{}: stored {:?}, must be {:?}\n{explained}",
            wrong.flow, wrong.run, wrong.stored, wrong.due
        );
    }
    text += &daemon::tails();
    let histories: BTreeSet<usize> = look
        .wrong
        .iter()
        .filter_map(|wrong| wrong.history.checked_sub(first))
        .collect();
    Failure { text, histories }
}

/// Whether what was written to metadata is there, and nothing else: no trigger may cost a row.
pub(crate) async fn check_rows(site: &Site, first: usize) -> Result<(), Failure> {
    const ROWS: &str = "\
select id, run_number::int, step_name::text, field_name::text, value, ts_epoch
  from metadata_v3
 where flow_id = $1
 order by id";
    for (number, history) in site.histories[first..].iter().enumerate() {
        let rows = site.client().query(ROWS, &[&history.flow]).await;
        let rows = rows.map_err(|error| Failure::new(format!("no look at rows: {error:?}")))?;
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
        let due = history.ledger.rows.iter().map(|(id, (run, row))| {
            let (step, field) = (row.step_name.clone(), row.field_name.clone());
            (*id, *run, step, field, row.value.to_string(), row.ts_ms)
        });
        let (found, due): (Vec<_>, Vec<_>) = (found.collect(), due.collect());
        if found != due {
            return Err(Failure {
                text: format!("{}: rows {found:?}\nmust be {due:?}", history.flow),
                histories: BTreeSet::from([number]),
            });
        }
    }
    Ok(())
}

/// Whether the walk over all runs found nothing to mend where triggers told of every write: then it
/// was the pipeline that made the statuses right.
pub(crate) fn check_drift(site: &Site, first: usize) -> Result<(), Failure> {
    for line in site.drift() {
        let flow = line["run.flow_id"].as_str().unwrap_or_default();
        let history = site.histories.iter().position(|one| one.flow == flow);
        let Some(number) = history.filter(|at| !site.histories[*at].ledger.unheard) else {
            continue;
        };
        return Err(Failure {
            text: format!(
                "drift where triggers told of every write: {line}\n{}",
                daemon::tails()
            ),
            histories: number.checked_sub(first).into_iter().collect(),
        });
    }
    Ok(())
}
