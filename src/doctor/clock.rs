//! Clocks: the database's, which decides, this machine's, and those that wrote the heartbeats.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt as _;

use super::report::{Outcome, State};
use super::{Check, Needs, Outcomes, Subject};
use crate::store::DEADLINE_SLACK;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "clock",
        needs: Needs::Server,
        run: |subject| clock(subject).boxed(),
    },
    Check {
        name: "heartbeats",
        needs: Needs::Installation,
        run: |subject| heartbeats(subject).boxed(),
    },
];

const SYNCHRONIZE: &str =
    "synchronize the clocks of the database's server and of the metadata service's hosts (NTP)";

async fn clock(subject: &Subject<'_>) -> Outcomes {
    const CLOCK: &str = "\
-- doctor.clock
select extract(epoch from clock_timestamp())::float8";
    let sent = now_secs();
    let row = subject.client.query_typed_one(CLOCK, &[]).await?;
    let received = now_secs();
    let database: f64 = row.get(0);
    // The database read its clock between the two.
    let ahead = if database < sent {
        database - sent
    } else {
        (database - received).max(0.0)
    };
    let found = if ahead.abs() < 0.1 {
        "the database's clock agrees with this machine's".to_owned()
    } else {
        let side = if ahead > 0.0 { "ahead of" } else { "behind" };
        format!(
            "the database's clock is {:.1} s {side} this machine's",
            ahead.abs()
        )
    };
    let cutoff = Duration::from_secs(subject.options.cutoff_secs.unsigned_abs());
    Ok(vec![if ahead.abs() >= cutoff.as_secs_f64() {
        Outcome::problem(
            format!(
                "{found}: by more than the cutoff, so heartbeats of this machine are not recent"
            ),
            SYNCHRONIZE,
        )
    } else if ahead.abs() > DEADLINE_SLACK.as_secs_f64() {
        Outcome::warning(found, SYNCHRONIZE)
    } else {
        Outcome::ok(found)
    }])
}

fn now_secs() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64()
}

async fn heartbeats(subject: &Subject<'_>) -> Outcomes {
    let runs = subject.tables.map(|tables| tables.runs.quoted());
    let runs = runs.unwrap_or_default();
    let sql = format!(
        "-- doctor.heartbeats
select (select count(*)
          from (select
                  from {runs}
                 where run_status = 'running'
                   and last_heartbeat_ts::numeric
                         > extract(epoch from clock_timestamp())::numeric + {slack}
                 limit 1000) r),
       (select count(*)
          from (select
                  from status_indexer.timers
                 limit 1000) t)",
        slack = DEADLINE_SLACK.as_secs()
    );
    let row = subject.client.query_typed_one(&sql, &[]).await?;
    let (running, failed): (i64, i64) = (row.get(0), row.get(1));
    if running + failed == 0 {
        return Ok(vec![Outcome::ok("no heartbeat is in the future")]);
    }
    Ok(vec![Outcome::bad(
        State::Warning,
        format!(
            "{running} running and {failed} failed runs (each counted up to 1000) have a heartbeat in \
             the future"
        ),
        SYNCHRONIZE,
    )])
}
