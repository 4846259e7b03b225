//! The daemon that leads, by its heartbeat in the database and its lock.

use futures_util::FutureExt as _;
use tokio_postgres::types::Type;

use super::report::Outcome;
use super::{Check, Needs, Outcomes, Subject};
use crate::daemon::LEADER_SILENCE;
use crate::pg::{LEADER_LOCK, LOCK_CLASS, SessionMode};

pub(super) const CHECKS: &[Check] = &[Check {
    name: "leader",
    needs: Needs::Installation,
    run: |subject| leader(subject).boxed(),
}];

async fn leader(subject: &Subject<'_>) -> Outcomes {
    // $1, $2: the lock. A role without pg_read_all_stats does not see the address.
    const LEADER: &str = "\
-- doctor.leader
select h.last_value > 0,
       extract(epoch from clock_timestamp())::float8 - h.last_value * 0.001::float8,
       (select format('process %s (role %s%s)', a.pid, a.usename, ', from ' || host(a.client_addr))
          from pg_locks l
          join pg_stat_activity a on a.pid = l.pid
         where l.locktype = 'advisory'
           and l.database = (select oid from pg_database where datname = current_database())
           and l.classid = $1
           and l.objid = $2
           and l.granted
         limit 1)
  from status_indexer.leader_heartbeat h";
    let key = |number: i32| number.unsigned_abs();
    let params = [
        (&key(LOCK_CLASS) as _, Type::OID),
        (&key(LEADER_LOCK) as _, Type::OID),
    ];
    let row = subject.client.query_typed_one(LEADER, &params).await?;
    let (has_led, age_secs): (bool, f64) = (row.get(0), row.get(1));
    let holder: Option<&str> = row.get(2);
    if has_led && age_secs.abs() <= LEADER_SILENCE.as_secs_f64() {
        let who = holder.unwrap_or("a daemon without the lock");
        return Ok(vec![Outcome::ok(format!(
            "{who} leads, heartbeat {:.1} s ago",
            age_secs.max(0.0)
        ))]);
    }
    if subject.mode == Some(SessionMode::Transaction) {
        return Ok(vec![Outcome::unknown(
            "behind a transaction pooler there is no leader: every daemon works",
            "see /readyz of the daemons",
        )]);
    }
    let found = match (has_led, holder) {
        (false, _) => "no daemon has worked yet".to_owned(),
        (true, None) => format!("no daemon leads: the last heartbeat is {age_secs:.0} s old"),
        (true, Some(holder)) => {
            format!("{holder} holds the leader's lock, and its heartbeat is {age_secs:.0} s old")
        }
    };
    let advice = if holder.is_some() {
        "see the log of that daemon, or end its session with pg_terminate_backend"
    } else {
        "start `status-indexer run`, or see its log"
    };
    Ok(vec![Outcome::problem(found, advice)])
}
