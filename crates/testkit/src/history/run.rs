//! Runs a list of steps in an environment, and checks the outcome.
//!
//! Promises that writes of one history happen in their order, those of different histories at the
//! same time, and faults between the writes that they stand between; that after the last step the
//! environment recovers and is checked. Each write is a statement of its own, and must affect as
//! many rows as the model says. Where only events change a status, each write's event is applied
//! before the next write of its history, so that equal steps have equal outcomes. Called by
//! [`super::campaign`] and the tests.

use super::failure::Failure;
use std::time::{Duration, SystemTime};

use futures_util::future::try_join_all;
use tokio_postgres::{Client, Error, Row};

use super::check::{check_drift, check_rows, settled, settled_past_deadlines};
use super::environment::{Environment, History, WRITERS};
use super::flow_model::FlowModel;
use super::step::{Change, Heartbeat, Step, Write};
use crate::wait::poll;

/// Metadata rows of one history have lower numbers.
const ROWS: i64 = 1_000;

/// How long one event may stay in the queue, in environments where each event is awaited.
const EVENT_TIMEOUT: Duration = Duration::from_secs(60);

/// Counts of the work done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Rounds.
    pub rounds: usize,
    /// Histories.
    pub histories: usize,
    /// Histories whose every write fired triggers: no drift may be found in these.
    pub with_triggers: usize,
    /// Writes.
    pub writes: usize,
    /// Faults.
    pub faults: usize,
    /// Stored statuses compared with the oracle's, whenever the environment had settled.
    pub compared: usize,
}

impl Totals {
    /// Adds the counts of another round.
    pub fn add(&mut self, other: Self) {
        self.rounds += other.rounds;
        self.histories += other.histories;
        self.with_triggers += other.with_triggers;
        self.writes += other.writes;
        self.faults += other.faults;
        self.compared += other.compared;
    }
}

/// Runs a round. `limit` is how long the environment may take to settle.
///
/// # Errors
/// If a write is refused, or a check fails.
pub async fn run_steps(
    environment: &mut Environment,
    steps: &[Step],
    limit: Duration,
) -> Result<Totals, Failure> {
    let first = environment.histories.len();
    open(environment, histories_in(steps)).await?;
    let mut totals = Totals::default();
    let mut rest = steps;
    while let Some(step) = rest.first() {
        let writes = writes_ahead(rest);
        if writes > 0 {
            write_all(environment, first, &rest[..writes]).await?;
            totals.writes += writes;
            rest = &rest[writes..];
            continue;
        }
        match step {
            Step::Fault(fault) => {
                environment.inject_fault(*fault).await;
                totals.faults += 1;
            }
            Step::Check if environment.can_settle() => {
                totals.compared += settled(environment, first, limit).await?;
            }
            Step::Check | Step::Write { .. } => {}
        }
        rest = &rest[1..];
    }
    environment.recover().await;
    totals.compared += settled(environment, first, limit).await?;
    totals.compared += settled_past_deadlines(environment, first, limit).await?;
    check_rows(environment, first).await?;
    check_drift(environment, first)?;
    environment.stop_second().await;
    totals.rounds = 1;
    totals.histories = environment.histories.len() - first;
    totals.with_triggers = environment.histories[first..]
        .iter()
        .filter(|history| !history.model.bypasses_triggers)
        .count();
    Ok(totals)
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
async fn open(environment: &mut Environment, count: usize) -> Result<(), Failure> {
    const INSERT: &str = "insert into flows_v3 (flow_id, ts_epoch) values ($1, 0)";
    for _ in 0..count {
        let number = environment.histories.len();
        let flow = format!("Flow{number}");
        let inserted = environment.client().execute(INSERT, &[&flow]).await;
        inserted.map_err(|error| refused("the flow", &error))?;
        environment.histories.push(History {
            flow,
            base: i64::try_from(number).expect("histories are counted") * ROWS,
            model: FlowModel::default(),
        });
    }
    Ok(())
}

/// Writes of all histories at the same time, each history's in their order on its own connection.
async fn write_all(
    environment: &mut Environment,
    first: usize,
    steps: &[Step],
) -> Result<(), Failure> {
    let (triggers_off, events_only) = (environment.triggers_off, environment.events_only);
    // Each history has a session of its own, because triggers are disabled for a whole session.
    let turns = environment.histories[first..]
        .chunks_mut(WRITERS)
        .enumerate();
    for (turn, histories) in turns {
        let numbers = turn * WRITERS..;
        let writing = numbers.zip(histories).zip(&environment.writers).map(
            async |((number, history), client)| {
                for step in steps {
                    let Step::Write {
                        history: of,
                        write,
                        fires_triggers,
                    } = step
                    else {
                        continue;
                    };
                    if *of == number {
                        history.model.bypasses_triggers |= triggers_off || !fires_triggers;
                        one(client, history, write, *fires_triggers).await?;
                        if events_only {
                            applied(client, &history.flow).await?;
                        }
                    }
                }
                Ok(())
            },
        );
        try_join_all(writing).await?;
    }
    Ok(())
}

/// Executes one write and records it in the model.
async fn one(
    client: &Client,
    history: &mut History,
    write: &Write,
    fires_triggers: bool,
) -> Result<(), Failure> {
    let outcome = async {
        if fires_triggers {
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
    let expected = history.model.affected_rows(write);
    if rows.len() != expected {
        return Err(Failure::new(format!(
            "{}: {write:?} affected {} rows, expected {expected}",
            history.flow,
            rows.len()
        )));
    }
    if let Some(row) = rows.first() {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let now_secs = i64::try_from(now.as_secs()).expect("seconds of this century");
        history.model.record(write, row.get(0), now_secs);
    }
    Ok(())
}

/// Waits until no event of the flow is in the queue: an event leaves it in the transaction that
/// applies it.
async fn applied(client: &Client, flow: &str) -> Result<(), Failure> {
    const QUEUED: &str = "\
select exists (select
                 from status_indexer.queue
                where flow_id = $1)";
    let outcome = poll(EVENT_TIMEOUT, async || {
        match client.query_one(QUEUED, &[&flow]).await {
            Ok(row) if row.get(0) => None,
            Ok(_) => Some(Ok(())),
            Err(error) => Some(Err(refused("reading the queue", &error))),
        }
    })
    .await;
    outcome.unwrap_or_else(|| {
        let text = format!("{flow}: an event was not applied within {EVENT_TIMEOUT:?}");
        Err(Failure::new(text))
    })
}

fn refused(what: &str, error: &Error) -> Failure {
    Failure::new(format!("{what} was refused: {error:?}"))
}

/// Executes a write; returns a row for each row that it affected, with the run's heartbeat where
/// that may have changed.
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
        Write::Run { run, heartbeat } => {
            let (relative, secs) = parts(*heartbeat);
            client.query(RUN, &[flow, run, &relative, &secs]).await
        }
        Write::Heartbeat { run, heartbeat } => {
            let (relative, secs) = parts(*heartbeat);
            client
                .query(HEARTBEAT, &[flow, run, &relative, &secs])
                .await
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

/// Whether a heartbeat is relative to the clock, and its seconds.
fn parts(heartbeat: Heartbeat) -> (bool, Option<i64>) {
    match heartbeat {
        Heartbeat::None => (false, None),
        Heartbeat::FromNow(secs) => (true, Some(secs)),
        Heartbeat::At(secs) => (false, Some(secs)),
    }
}
