//! The queue of events and the server's queue of notifications.

use futures_util::FutureExt as _;

use super::report::Outcome;
use super::{Check, Needs, Outcomes, Subject};
use crate::daemon::NOTIFY_QUEUE_FULL;
use crate::store::queue_depth;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "queue",
        needs: Needs::Installation,
        run: |subject| queue(subject).boxed(),
    },
    Check {
        name: "queue_bloat",
        needs: Needs::Installation,
        run: |subject| bloat(subject).boxed(),
    },
    Check {
        name: "notifications",
        needs: Needs::Server,
        run: |subject| notifications(subject).boxed(),
    },
];

/// Dead rows of the queue from which on something keeps vacuum from removing them: it runs at 5,000.
const DEAD_ROWS: i64 = 100_000;

/// A queue of this size, in bytes, with few rows has not been vacuumed in time.
const LARGE: i64 = 256 * 1024 * 1024;

/// From this depth on, rows and not their remains take the space.
const DEEP: i64 = 10_000;

async fn queue(subject: &Subject<'_>) -> Outcomes {
    let (depth, oldest_secs) = queue_depth(subject.client).await?;
    let limit = subject.options.max_event_age.as_secs_f64();
    let counted = if depth >= DEEP { "at least " } else { "" };
    let found = format!("{counted}{depth} events wait, the oldest for {oldest_secs:.1} s");
    Ok(vec![if oldest_secs > limit {
        Outcome::problem(
            found,
            "see the check of the leader and the log of its daemon: it names locked and refused runs",
        )
    } else {
        Outcome::ok(found)
    }])
}

async fn bloat(subject: &Subject<'_>) -> Outcomes {
    const BLOAT: &str = "\
-- doctor.queue_bloat
select pg_total_relation_size(c.oid),
       pg_stat_get_dead_tuples(c.oid),
       (select count(*) from (select from status_indexer.queue limit 10000) q),
       to_char(pg_stat_get_last_autovacuum_time(c.oid) at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS\"Z\"'),
       current_setting('autovacuum')::boolean
         and coalesce((select option_value::boolean
                         from pg_options_to_table(c.reloptions)
                        where option_name = 'autovacuum_enabled'), true)
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where n.nspname = 'status_indexer'
   and c.relname = 'queue'";
    let row = subject.client.query_typed_one(BLOAT, &[]).await?;
    let (bytes, dead, live): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    let (last, is_vacuumed): (Option<&str>, bool) = (row.get(3), row.get(4));
    let last = last.unwrap_or("never");
    let found = format!(
        "the queue takes {} kB for {live} rows, {dead} dead rows, last autovacuum: {last}",
        bytes / 1024
    );
    Ok(vec![if !is_vacuumed {
        Outcome::warning(
            format!("{found}; autovacuum is off"),
            "switch it on (`alter table status_indexer.queue reset (autovacuum_enabled)`, or the \
             server's setting)",
        )
    } else if dead > DEAD_ROWS || (bytes > LARGE && live < DEEP) {
        Outcome::warning(
            found,
            "end what holds back vacuum (see the checks below), then run `vacuum status_indexer.queue`",
        )
    } else {
        Outcome::ok(found)
    }])
}

async fn notifications(subject: &Subject<'_>) -> Outcomes {
    const USAGE: &str = "\
-- doctor.notifications
select pg_notification_queue_usage()";
    let row = subject.client.query_typed_one(USAGE, &[]).await?;
    let usage: f64 = row.get(0);
    let found = format!(
        "the server's notification queue is {:.0} % full",
        usage * 100.0
    );
    Ok(vec![if usage >= NOTIFY_QUEUE_FULL {
        Outcome::problem(
            format!("{found}; when it is full, commits that notify fail"),
            "end the session that listens and has been in one transaction for the longest time",
        )
    } else {
        Outcome::ok(found)
    }])
}
