//! Replication: publications of the runs table, slots that keep WAL, and upstream's own triggers.

use futures_util::FutureExt as _;

use super::report::{Outcome, State};
use super::{Check, Needs, Outcomes, Subject};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "publications",
        needs: Needs::Tables,
        run: |subject| publications(subject).boxed(),
    },
    Check {
        name: "replication_slots",
        needs: Needs::Server,
        run: |subject| slots(subject).boxed(),
    },
    Check {
        name: "upstream_triggers",
        needs: Needs::Tables,
        run: |subject| upstream_triggers(subject).boxed(),
    },
];

/// An inactive slot that keeps more WAL than this, in bytes, is a problem.
const MUCH_WAL: i64 = 1024 * 1024 * 1024;

async fn publications(subject: &Subject<'_>) -> Outcomes {
    const STOPPED: &str = "\
-- doctor.stopped_subscribers
select count(*)
  from pg_replication_slots
 where slot_type = 'logical'
   and database = current_database()
   and not active";
    let names = subject.inspection()?.publications().await?;
    if names.is_empty() {
        return Ok(vec![Outcome::ok(
            "no publication contains the indexer's columns",
        )]);
    }
    let stopped: i64 = subject.client.query_typed_one(STOPPED, &[]).await?.get(0);
    let found = format!(
        "published with the indexer's columns by {}",
        names.join(", ")
    );
    Ok(vec![if stopped == 0 {
        Outcome::ok(format!(
            "{found}; no subscriber of this database has stopped"
        ))
    } else {
        Outcome::warning(
            format!("{found}, and {stopped} logical slots of this database are not in use"),
            "see the log of the subscribers: one without the columns run_status and run_finished_at stops",
        )
    }])
}

async fn slots(subject: &Subject<'_>) -> Outcomes {
    const INACTIVE: &str = "\
-- doctor.replication_slots
select format('%s (%s%s)', slot_name, slot_type, ', ' || database),
       case
         when pg_is_in_recovery() then 0
         else coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::int8
       end
  from pg_replication_slots
 where not active
   and restart_lsn is not null
 order by 1";
    let rows = subject.client.query_typed(INACTIVE, &[]).await?;
    if rows.is_empty() {
        return Ok(vec![Outcome::ok("every replication slot is in use")]);
    }
    let inactive = rows.iter().map(|row| {
        let (name, bytes): (&str, i64) = (row.get(0), row.get(1));
        let state = if bytes > MUCH_WAL {
            State::Problem
        } else {
            State::Warning
        };
        Outcome::bad(
            state,
            format!(
                "slot {name} is not in use, and keeps {} MB of WAL",
                bytes / 1024 / 1024
            ),
            "start its consumer, or drop it with pg_drop_replication_slot",
        )
    });
    Ok(inactive.collect())
}

async fn upstream_triggers(subject: &Subject<'_>) -> Outcomes {
    Ok(vec![if subject.inspection()?.upstream_notifies().await? {
        Outcome::warning(
            "upstream's notify_ui trigger (DB_TRIGGER_CREATE=1) sends a notification for each status \
             written, so a backfill limits its rate",
            "nothing, if the web UI needs it; leave --notify-ui off",
        )
    } else {
        Outcome::ok("upstream's triggers do not notify of statuses")
    }])
}
