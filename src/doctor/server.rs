//! The server: its version, its role, its encoding, and room for connections.

use futures_util::FutureExt as _;

use super::report::Outcome;
use super::{Check, Needs, Outcomes, Subject};
use crate::config::{ApiArgs, DaemonArgs};
use crate::migrate::inspect::server_support;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "server_version",
        needs: Needs::Server,
        run: |subject| version(subject).boxed(),
    },
    Check {
        name: "primary",
        needs: Needs::Server,
        run: |subject| primary(subject).boxed(),
    },
    Check {
        name: "encoding",
        needs: Needs::Server,
        run: |subject| encoding(subject).boxed(),
    },
    Check {
        name: "connections",
        needs: Needs::Server,
        run: |subject| connections(subject).boxed(),
    },
];

async fn version(subject: &Subject<'_>) -> Outcomes {
    const VERSION: &str = "\
-- doctor.server_version
select current_setting('server_version'), current_setting('server_version_num')::integer";
    let row = subject.client.query_typed_one(VERSION, &[]).await?;
    let (text, number): (String, i32) = (row.get(0), row.get(1));
    Ok(vec![match server_support(number / 10_000) {
        Ok(None) => Outcome::ok(format!("PostgreSQL {text}")),
        Ok(Some(warning)) => Outcome::warning(
            format!("PostgreSQL {text}: {warning}"),
            "look for a newer release of the indexer",
        ),
        Err(error) => Outcome::problem(
            error.to_string(),
            "the indexer does not work on this server",
        ),
    }])
}

async fn primary(subject: &Subject<'_>) -> Outcomes {
    const RECOVERY: &str = "\
-- doctor.primary
select pg_is_in_recovery()";
    let row = subject.client.query_typed_one(RECOVERY, &[]).await?;
    Ok(vec![if row.get(0) {
        Outcome::problem(
            "the server is in recovery (a standby), and the daemon needs the primary",
            "connect to the primary, or list all hosts in the connection string",
        )
    } else {
        Outcome::ok("the server accepts writes")
    }])
}

async fn encoding(subject: &Subject<'_>) -> Outcomes {
    const ENCODING: &str = "\
-- doctor.encoding
select pg_encoding_to_char(encoding)::text, datcollate::text
  from pg_database
 where datname = current_database()";
    let row = subject.client.query_typed_one(ENCODING, &[]).await?;
    let (encoding, collation): (String, String) = (row.get(0), row.get(1));
    let found = format!("{encoding}, collation {collation}");
    Ok(vec![if encoding == "UTF8" {
        Outcome::ok(found)
    } else {
        Outcome::warning(
            format!(
                "{found}: runs of flows whose names cannot be converted to UTF8 have statuses, but are \
                 not compared"
            ),
            "nothing, if the names of flows are ASCII",
        )
    }])
}

async fn connections(subject: &Subject<'_>) -> Outcomes {
    // `reserved_connections` exists since PostgreSQL 16.
    const LIMITS: &str = "\
-- doctor.connections
with used as (
  select count(*) as total,
         count(*) filter (where datname = current_database()) as of_database,
         count(*) filter (where usename = current_user) as of_role
    from pg_stat_activity
   where datname is not null
)
select 'max_connections',
       (select sum(case name when 'max_connections' then setting::int8 else -setting::int8 end)::int8
          from pg_settings
         where name in ('max_connections', 'superuser_reserved_connections', 'reserved_connections')),
       used.total
  from used
 union all
select 'the connection limit of the database', datconnlimit::int8, used.of_database
  from pg_database, used
 where datname = current_database()
   and datconnlimit >= 0
 union all
select 'the connection limit of the role', rolconnlimit::int8, used.of_role
  from pg_roles, used
 where rolname = current_user
   and rolconnlimit >= 0";
    let needed = i64::from(DaemonArgs::defaults().pool_max)
        + i64::from(ApiArgs::defaults().reader_pool_max)
        + 1;
    let rows = subject.client.query_typed(LIMITS, &[]).await?;
    let limits = rows.iter().map(|row| {
        let (limit, allowed, used): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
        let left = (allowed - used).max(0);
        let found = format!("{used} of {allowed} connections are in use by {limit}");
        let advice = format!(
            "raise {limit}, or end connections: a daemon with default settings opens up to {needed}"
        );
        match left {
            0 => Outcome::problem(found, advice),
            left if left < needed => Outcome::warning(found, advice),
            _ => Outcome::ok(found),
        }
    });
    Ok(limits.collect())
}
