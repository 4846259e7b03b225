//! Settings of the server, the database and the roles that impede the daemon or keep triggers from
//! firing.
//!
//! The indexer's sessions set what they need themselves, so most settings of a role have no effect on
//! them. Reported are those that no session overrides, and those that concern the sessions of others.

use futures_util::FutureExt as _;
use tokio_postgres::types::Type;

use super::report::Outcome;
use super::{Check, Needs, Outcomes, Subject};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "settings",
        needs: Needs::Server,
        run: |subject| of_own_role(subject).boxed(),
    },
    Check {
        name: "settings_of_others",
        needs: Needs::Server,
        run: |subject| of_others(subject).boxed(),
    },
];

/// A setting with a number, and the lowest value that does no harm, in the unit of `pg_settings`.
struct Limit {
    name: &'static str,
    /// The value that means no limit.
    unlimited: i64,
    least: i64,
    harm: &'static str,
}

const LIMITS: &[Limit] = &[
    Limit {
        name: "transaction_timeout",
        unlimited: 0,
        // A statement of the daemon may take 30 s.
        least: 35_000,
        harm: "the server ends sessions of the indexer in the middle of a scan",
    },
    Limit {
        name: "idle_session_timeout",
        unlimited: 0,
        least: 10_000,
        harm: "the server closes pooled connections, and the daemon opens new ones all the time",
    },
    Limit {
        name: "temp_file_limit",
        unlimited: -1,
        // Kilobytes.
        least: 64 * 1024,
        harm: "statements of a scan that sort on disk fail",
    },
    Limit {
        name: "statement_timeout",
        unlimited: 0,
        least: 500,
        harm: "it applies until the indexer's session has set its own limit, and may end that statement",
    },
    Limit {
        name: "lock_timeout",
        unlimited: 0,
        least: 10,
        harm: "it applies until the indexer's session has set its own limit, and may end that statement",
    },
];

async fn of_own_role(subject: &Subject<'_>) -> Outcomes {
    // `reset_val` is the value that a session begins with, from whatever source.
    const SETTINGS: &str = "\
-- doctor.settings
select name, reset_val
  from pg_settings
 where name = any ($1)";
    let mut names: Vec<&str> = LIMITS.iter().map(|limit| limit.name).collect();
    names.extend(["session_replication_role", "default_transaction_read_only"]);
    let params = [(&names as _, Type::TEXT_ARRAY)];
    let rows = subject.client.query_typed(SETTINGS, &params).await?;
    let mut outcomes = Vec::new();
    for row in &rows {
        let (name, value): (&str, &str) = (row.get(0), row.get(1));
        match (name, value) {
            ("session_replication_role", "replica") => outcomes.push(replica("this role")),
            ("default_transaction_read_only", "on") => outcomes.push(Outcome::warning(
                "transactions of this role are read-only by default; the indexer's sessions override it",
                "reset default_transaction_read_only, unless it is intended",
            )),
            _ => outcomes.extend(of_limit(name, value)),
        }
    }
    if outcomes.is_empty() {
        outcomes.push(Outcome::ok(
            "no setting of the server, the database or the role impedes the indexer's sessions",
        ));
    }
    Ok(outcomes)
}

fn of_limit(name: &str, value: &str) -> Option<Outcome> {
    let limit = LIMITS.iter().find(|limit| limit.name == name)?;
    let number: i64 = value.parse().ok()?;
    let harmful = number != limit.unlimited && number < limit.least;
    harmful.then(|| {
        let unit = if name == "temp_file_limit" {
            "kB"
        } else {
            "ms"
        };
        Outcome::warning(
            format!("{name} is {number} {unit}: {}", limit.harm),
            format!(
                "run `alter role ROLE in database DATABASE set {name} = {}`",
                limit.unlimited
            ),
        )
    })
}

fn replica(whose: &str) -> Outcome {
    Outcome::problem(
        format!(
            "session_replication_role is replica for {whose}: rows that its sessions write fire no \
             trigger, so statuses are late by up to a reconciliation pass"
        ),
        "reset it with `alter role ... reset session_replication_role` or `alter database ... reset \
         session_replication_role`, then run `select status_indexer.invalidate();`",
    )
}

async fn of_others(subject: &Subject<'_>) -> Outcomes {
    const SETTINGS: &str = "\
-- doctor.settings_of_others
select coalesce('role ' || r.rolname, 'all roles')
         || case when s.setdatabase = 0 then '' else ' in this database' end,
       split_part(c.setting, '=', 1),
       split_part(c.setting, '=', 2)
  from pg_db_role_setting s
  left join pg_roles r on r.oid = s.setrole
 cross join unnest(s.setconfig) c (setting)
 where s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
   and r.rolname is distinct from current_user
 order by 1, 2";
    let rows = subject.client.query_typed(SETTINGS, &[]).await?;
    let mut outcomes = Vec::new();
    for row in &rows {
        let (whose, name, value): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
        match (name, value) {
            ("session_replication_role", "replica") => outcomes.push(replica(whose)),
            ("default_transaction_read_only", "on" | "true" | "yes" | "1") => {
                outcomes.push(Outcome::warning(
                    format!("transactions are read-only by default for {whose}"),
                    "reset default_transaction_read_only, if the metadata service uses such a role",
                ));
            }
            _ => {}
        }
    }
    if outcomes.is_empty() {
        outcomes.push(Outcome::ok(
            "no setting of another role keeps triggers from firing or rows from being written",
        ));
    }
    Ok(outcomes)
}
