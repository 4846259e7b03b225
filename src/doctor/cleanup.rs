//! What holds back vacuum, so that the queue and the runs table grow and reads become slower.

use futures_util::FutureExt as _;
use tokio_postgres::types::Type;

use super::report::Outcome;
use super::{Check, Needs, Outcomes, Subject};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "transactions",
        needs: Needs::Server,
        run: |subject| transactions(subject).boxed(),
    },
    Check {
        name: "prepared_transactions",
        needs: Needs::Server,
        run: |subject| prepared(subject).boxed(),
    },
];

async fn transactions(subject: &Subject<'_>) -> Outcomes {
    // $1: seconds. Those of an autovacuum hold nothing back.
    const OLD: &str = "\
-- doctor.transactions
select format('process %s (role %s, %s, %s, open for %s s)', pid, usename,
              coalesce(nullif(application_name, ''), 'no application_name'), coalesce(state, backend_type),
              extract(epoch from clock_timestamp() - xact_start)::int8)
  from pg_stat_activity
 where datname = current_database()
   and pid <> pg_backend_pid()
   and backend_type <> 'autovacuum worker'
   and clock_timestamp() - xact_start > make_interval(secs => $1)
 order by xact_start
 limit 3";
    // The server hides the transactions of other roles from a role without pg_read_all_stats.
    const HIDDEN: &str = "\
-- doctor.hidden_sessions
select count(*)
  from pg_stat_activity
 where datname = current_database()
   and query = '<insufficient privilege>'";
    let limit = subject.options.max_transaction_age;
    let rows = subject
        .client
        .query_typed(OLD, &[(&limit.as_secs_f64(), Type::FLOAT8)])
        .await?;
    let hidden: i64 = subject.client.query_typed_one(HIDDEN, &[]).await?.get(0);
    let mut outcomes: Vec<Outcome> = rows
        .iter()
        .map(|row| {
            Outcome::warning(
                format!(
                    "a long transaction holds back vacuum: {}",
                    row.get::<_, &str>(0)
                ),
                "commit or end it; while it is open, exact reads and deadlines cost more",
            )
        })
        .collect();
    if hidden > 0 {
        outcomes.push(Outcome::unknown(
            format!("cannot see the transactions of {hidden} sessions of other roles"),
            "grant pg_read_all_stats to the role, or run doctor as a superuser",
        ));
    }
    if outcomes.is_empty() {
        outcomes.push(Outcome::ok(format!(
            "no transaction is open for longer than {} s",
            limit.as_secs()
        )));
    }
    Ok(outcomes)
}

async fn prepared(subject: &Subject<'_>) -> Outcomes {
    const PREPARED: &str = "\
-- doctor.prepared_transactions
select format('%s of role %s, prepared %s s ago', quote_literal(gid), owner,
              extract(epoch from clock_timestamp() - prepared)::int8)
  from pg_prepared_xacts
 where database = current_database()
   and clock_timestamp() - prepared > make_interval(secs => $1)
 order by prepared
 limit 3";
    let limit = subject.options.max_transaction_age;
    let rows = subject
        .client
        .query_typed(PREPARED, &[(&limit.as_secs_f64(), Type::FLOAT8)])
        .await?;
    if rows.is_empty() {
        return Ok(vec![Outcome::ok("no old prepared transaction")]);
    }
    let old = rows.iter().map(|row| {
        Outcome::warning(
            format!(
                "a prepared transaction holds back vacuum: {}",
                row.get::<_, &str>(0)
            ),
            "run `commit prepared` or `rollback prepared`",
        )
    });
    Ok(old.collect())
}
