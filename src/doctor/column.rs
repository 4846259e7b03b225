//! The column: whether it is valid, what keeps it from that, and the cutoff.

use futures_util::FutureExt as _;

use super::report::Outcome;
use super::{Check, Needs, Outcomes, Subject};
use crate::store::{ObstacleKind, State};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "row_security",
        needs: Needs::Installation,
        run: |subject| row_security(subject).boxed(),
    },
    Check {
        name: "collation",
        needs: Needs::Installation,
        run: |subject| collation(subject).boxed(),
    },
    Check {
        name: "column",
        needs: Needs::Installation,
        run: |subject| validity(subject).boxed(),
    },
    Check {
        name: "cutoff",
        needs: Needs::Installation,
        run: |subject| cutoff(subject).boxed(),
    },
];

async fn row_security(subject: &Subject<'_>) -> Outcomes {
    obstacles(
        subject,
        ObstacleKind::RowsHidden,
        "the role sees every row of both tables",
    )
    .await
}

async fn collation(subject: &Subject<'_>) -> Outcomes {
    obstacles(
        subject,
        ObstacleKind::CollationChanged,
        "no change of the collation is known",
    )
    .await
}

/// The obstacles of one kind, whose text says what to do.
async fn obstacles(subject: &Subject<'_>, kind: ObstacleKind, none: &str) -> Outcomes {
    let state = State::load(subject.client).await?;
    let found = state
        .obstacles
        .into_iter()
        .filter(|found| found.kind == kind);
    let mut outcomes: Vec<Outcome> = found
        .map(|found| match found.detail.split_once(": ") {
            Some((found, advice)) => Outcome::problem(found, advice),
            None => Outcome::problem(found.detail, "the column cannot become valid"),
        })
        .collect();
    if outcomes.is_empty() {
        outcomes.push(Outcome::ok(none));
    }
    Ok(outcomes)
}

async fn validity(subject: &Subject<'_>) -> Outcomes {
    const VALIDITY: &str = "\
-- doctor.validity
select to_char(valid_since at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS\"Z\"'),
       scan_compared,
       (select greatest(reltuples, 0)::int8
          from pg_class
         where oid = to_regclass(runs_table))
  from status_indexer.state";
    let row = subject.client.query_typed_one(VALIDITY, &[]).await?;
    let since: Option<&str> = row.get(0);
    if let Some(since) = since {
        return Ok(vec![Outcome::ok(format!("valid since {since}"))]);
    }
    let compared: i64 = row.get(1);
    let estimate: Option<i64> = row.get(2);
    Ok(vec![Outcome::problem(
        format!(
            "not valid, so readers get no statuses: the backfill has compared {compared} of about {} \
             runs",
            estimate.unwrap_or_default().max(compared)
        ),
        "wait while `status-indexer run` works, or run `status-indexer backfill`",
    )])
}

async fn cutoff(subject: &Subject<'_>) -> Outcomes {
    let state = State::load(subject.client).await?;
    let (in_force, configured) = (state.cutoff_secs, subject.options.cutoff_secs);
    Ok(vec![if in_force == configured {
        Outcome::ok(format!("{in_force} s, as configured"))
    } else {
        Outcome::warning(
            format!("{in_force} s in the database, {configured} s configured here"),
            "set RUN_INACTIVE_CUTOFF_TIME to the metadata service's value, for all daemons: one with \
             another value invalidates the column when it becomes the leader",
        )
    }])
}
