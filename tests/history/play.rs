//! Plays a list of steps on a site, and has it judged.
//!
//! Promises that writes of one history happen in their order, those of different histories at the
//! same time, and faults between the writes that they stand between; that after the last step the
//! site recovers and is judged. Each write is a statement of its own, and must do what it is.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use futures_util::future::try_join_all;
use tokio_postgres::{Client, Error, Row};

use super::judge::{check_drift, check_rows, quiet, quiet_in_time};
use super::ledger::Ledger;
use super::site::{History, Site, WRITERS};
use super::step::{Beat, Change, Step, Write};

/// Metadata rows of one history have lower numbers.
const ROWS: i64 = 1_000;

/// Why a round was not as it must be.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) text: String,
    /// Whose runs were wrong, by their number in the round.
    pub(crate) histories: BTreeSet<usize>,
}

impl Failure {
    pub(crate) fn new(text: String) -> Self {
        Self {
            text,
            histories: BTreeSet::new(),
        }
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) rounds: usize,
    pub(crate) histories: usize,
    /// Of which triggers told everything: no drift may have been found in these.
    pub(crate) heard: usize,
    pub(crate) writes: usize,
    pub(crate) faults: usize,
    /// Stored statuses held against the model's verdict, at times of quiet.
    pub(crate) compared: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.rounds += other.rounds;
        self.histories += other.histories;
        self.heard += other.heard;
        self.writes += other.writes;
        self.faults += other.faults;
        self.compared += other.compared;
    }
}

/// Plays a round. `patience` is how long the site may take to become quiet.
pub(crate) async fn play(
    site: &mut Site,
    steps: &[Step],
    patience: Duration,
) -> Result<Tally, Failure> {
    let first = site.histories.len();
    open(site, histories_in(steps)).await?;
    let mut tally = Tally::default();
    let mut rest = steps;
    while let Some(step) = rest.first() {
        let writes = writes_ahead(rest);
        if writes > 0 {
            write_all(site, first, &rest[..writes]).await?;
            tally.writes += writes;
            rest = &rest[writes..];
            continue;
        }
        match step {
            Step::Fault(fault) => {
                site.befall(*fault).await;
                tally.faults += 1;
            }
            Step::Settle if site.is_able() => {
                tally.compared += quiet(site, first, patience).await?;
            }
            Step::Settle | Step::Write { .. } => {}
        }
        rest = &rest[1..];
    }
    site.recover().await;
    tally.compared += quiet(site, first, patience).await?;
    tally.compared += quiet_in_time(site, first, patience).await?;
    check_rows(site, first).await?;
    check_drift(site, first)?;
    site.dismiss_second().await;
    tally.rounds = 1;
    tally.histories = site.histories.len() - first;
    let played = &site.histories[first..];
    tally.heard = played.iter().filter(|one| !one.ledger.unheard).count();
    Ok(tally)
}

/// How many writes a list of steps begins with.
fn writes_ahead(steps: &[Step]) -> usize {
    let other = |step: &Step| !matches!(step, Step::Write { .. });
    steps.iter().position(other).unwrap_or(steps.len())
}

fn histories_in(steps: &[Step]) -> usize {
    let numbers = steps.iter().filter_map(|step| match step {
        Step::Write { history, .. } => Some(history + 1),
        _ => None,
    });
    numbers.max().unwrap_or(0)
}

/// Registers the flows of a round.
async fn open(site: &mut Site, count: usize) -> Result<(), Failure> {
    const INSERT: &str = "insert into flows_v3 (flow_id, ts_epoch) values ($1, 0)";
    for _ in 0..count {
        let number = site.histories.len();
        let flow = format!("Flow{number}");
        let inserted = site.client().execute(INSERT, &[&flow]).await;
        inserted.map_err(|error| refused("the flow", &error))?;
        site.histories.push(History {
            flow,
            base: i64::try_from(number).expect("histories are counted") * ROWS,
            ledger: Ledger::default(),
        });
    }
    Ok(())
}

/// Writes of all histories at the same time, each history's in their order on its own connection.
async fn write_all(site: &mut Site, first: usize, steps: &[Step]) -> Result<(), Failure> {
    let triggers_off = site.triggers_off;
    // A session is not shared: triggers are switched off for all of it.
    let turns = site.histories[first..].chunks_mut(WRITERS).enumerate();
    for (turn, histories) in turns {
        let numbers = turn * WRITERS..;
        let writing =
            numbers
                .zip(histories)
                .zip(&site.writers)
                .map(async |((number, history), client)| {
                    for step in steps {
                        let Step::Write {
                            history: of,
                            write,
                            heard,
                        } = step
                        else {
                            continue;
                        };
                        if *of == number {
                            history.ledger.unheard |= triggers_off || !heard;
                            one(client, history, write, *heard).await?;
                        }
                    }
                    Ok(())
                });
        try_join_all(writing).await?;
    }
    Ok(())
}

/// One write, and its entry in the ledger.
async fn one(
    client: &Client,
    history: &mut History,
    write: &Write,
    heard: bool,
) -> Result<(), Failure> {
    let outcome = async {
        if heard {
            return send(client, history, write).await;
        }
        client
            .batch_execute("set session_replication_role = replica")
            .await?;
        let rows = send(client, history, write).await?;
        client
            .batch_execute("reset session_replication_role")
            .await?;
        Ok(rows)
    };
    let rows = outcome
        .await
        .map_err(|error| refused(&format!("{write:?}"), &error))?;
    let expected = history.ledger.touches(write);
    if rows.len() != expected {
        return Err(Failure::new(format!(
            "{}: {write:?} touched {} rows and not {expected}",
            history.flow,
            rows.len()
        )));
    }
    if let Some(row) = rows.first() {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let now_secs = i64::try_from(now.as_secs()).expect("seconds of this century");
        history.ledger.enter(write, row.get(0), now_secs);
    }
    Ok(())
}

fn refused(what: &str, error: &Error) -> Failure {
    Failure::new(format!("{what} was refused: {error:?}"))
}

/// Executes a write; a row for each row that it touched, with the run's heartbeat where that may
/// have changed.
async fn send(client: &Client, history: &History, write: &Write) -> Result<Vec<Row>, Error> {
    const RUN: &str = "\
insert into runs_v3 (flow_id, run_number, user_name, ts_epoch, tags, system_tags, last_heartbeat_ts)
values ($1, $2, 'tester', 0, '[]', '[]',
        case when $3 then floor(extract(epoch from clock_timestamp()))::bigint + $4 else $4 end)
    on conflict do nothing
returning last_heartbeat_ts";
    const REMOVE: &str = "\
delete from runs_v3
 where flow_id = $1
   and run_number = $2
returning null::bigint";
    const HEARTBEAT: &str = "\
update runs_v3
   set last_heartbeat_ts = case when $3 then floor(extract(epoch from clock_timestamp()))::bigint + $4 else $4 end
 where flow_id = $1
   and run_number = $2
returning last_heartbeat_ts";
    const TAG: &str = "\
update runs_v3
   set tags = tags || '[\"tag\"]'
 where flow_id = $1
   and run_number = $2
returning null::bigint";
    const EDIT: &str = "\
update runs_v3
   set run_status = $3
 where flow_id = $1
   and run_number = $2
returning null::bigint";
    const EVIDENCE: &str = "\
insert into metadata_v3 (flow_id, run_number, id, step_name, task_id, field_name, value, type, ts_epoch)
values ($1, $2, $3, $4, 1, $5, $6, $5, $7)
returning null::bigint";
    const ERASE: &str = "\
delete from metadata_v3
 where flow_id = $1
   and id = $2
returning null::bigint";
    const CLEAR: &str = "\
delete from metadata_v3
 where flow_id = $1
   and run_number = $2
returning null::bigint";
    let flow = &history.flow;
    match write {
        Write::Run { run, beat } => {
            let (off, secs) = parts(*beat);
            client.query(RUN, &[flow, run, &off, &secs]).await
        }
        Write::Heartbeat { run, beat } => {
            let (off, secs) = parts(*beat);
            client.query(HEARTBEAT, &[flow, run, &off, &secs]).await
        }
        Write::Remove { run } => client.query(REMOVE, &[flow, run]).await,
        Write::Tag { run } => client.query(TAG, &[flow, run]).await,
        Write::Edit { run, status } => client.query(EDIT, &[flow, run, &status.as_str()]).await,
        Write::Evidence {
            id,
            run,
            step,
            field,
            value,
            ts_ms,
        } => {
            let (run, id) = (i64::from(*run), history.base + id);
            client
                .query(EVIDENCE, &[flow, &run, &id, step, field, value, ts_ms])
                .await
        }
        Write::Change { id, change } => send_change(client, flow, history.base + id, change).await,
        Write::Erase { id } => client.query(ERASE, &[flow, &(history.base + id)]).await,
        Write::Clear { run } => client.query(CLEAR, &[flow, &i64::from(*run)]).await,
    }
}

async fn send_change(
    client: &Client,
    flow: &String,
    id: i64,
    change: &Change,
) -> Result<Vec<Row>, Error> {
    let (column, text, number) = match change {
        Change::Value(text) => ("value", Some(*text), None),
        Change::Step(text) => ("step_name", Some(*text), None),
        Change::Field(text) => ("field_name", Some(*text), None),
        Change::Time(ts_ms) => ("ts_epoch", None, Some(*ts_ms)),
        Change::Run(run) => ("run_number", None, Some(i64::from(*run))),
    };
    let new = if text.is_some() {
        "$3::text"
    } else {
        "$4::bigint"
    };
    let update = format!(
        "update metadata_v3
            set {column} = {new}
          where flow_id = $1
            and id = $2
            and ($3::text is not null or $4::bigint is not null)
         returning null::bigint"
    );
    client.query(&update, &[flow, &id, &text, &number]).await
}

/// Whether a heartbeat is told from the clock, and its seconds.
fn parts(beat: Beat) -> (bool, Option<i64>) {
    match beat {
        Beat::None => (false, None),
        Beat::Off(secs) => (true, Some(secs)),
        Beat::At(secs) => (false, Some(secs)),
    }
}
