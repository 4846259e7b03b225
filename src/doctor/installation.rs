//! What `migrate` installs: the tables, the steps, owners, privileges and every object.

use futures_util::FutureExt as _;

use super::report::{Outcome, State};
use super::{Check, Needs, Outcomes, Subject};
use crate::error::chain;
use crate::migrate::inspect::Fault;
use crate::store;

/// The name of the check that reports why there are no tables.
pub(super) const TABLES: &str = "tables";

const UP: &str = "run `status-indexer migrate up`";

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: TABLES,
        needs: Needs::Server,
        run: |subject| tables(subject).boxed(),
    },
    Check {
        name: "steps",
        needs: Needs::Tables,
        run: |subject| steps(subject).boxed(),
    },
    Check {
        name: "owner",
        needs: Needs::Tables,
        run: |subject| owner(subject).boxed(),
    },
    Check {
        name: "privileges",
        needs: Needs::Installation,
        run: |subject| privileges(subject).boxed(),
    },
    Check {
        name: "dumps",
        needs: Needs::Installation,
        run: |subject| dumps(subject).boxed(),
    },
    Check {
        name: "definition",
        needs: Needs::Installation,
        run: |subject| definition(subject).boxed(),
    },
    Check {
        name: "triggers",
        needs: Needs::Installation,
        run: |subject| triggers(subject).boxed(),
    },
    Check {
        name: "functions",
        needs: Needs::Installation,
        run: |subject| functions(subject).boxed(),
    },
    Check {
        name: "indexes",
        needs: Needs::Installation,
        run: |subject| indexes(subject).boxed(),
    },
    Check {
        name: "view",
        needs: Needs::Installation,
        run: |subject| view(subject).boxed(),
    },
];

/// The tables were not found, or cannot be used.
pub(super) fn no_tables(error: &anyhow::Error) -> Outcome {
    Outcome::problem(
        chain(error.as_ref()),
        "the rest of the installation is not checked",
    )
}

async fn tables(subject: &Subject<'_>) -> Outcomes {
    let inspection = subject.inspection()?;
    if let Err(error) = inspection.check_upstream().await {
        // The catalog could not be read, which says nothing about the tables.
        if super::sqlstate(&error).is_some() {
            return Err(error);
        }
        return Ok(vec![Outcome::problem(
            chain(error.as_ref()),
            "run `status-indexer migrate up` afterwards",
        )]);
    }
    let names = subject.tables.map_or_else(String::new, |tables| {
        format!("{} and {}", tables.runs.quoted(), tables.metadata.quoted())
    });
    Ok(vec![Outcome::ok(format!(
        "{names} have every column and index that the indexer reads"
    ))])
}

async fn steps(subject: &Subject<'_>) -> Outcomes {
    let inspection = subject.inspection()?;
    let steps = inspection.steps().await?;
    if steps.applied == 0 && steps.newer.is_none() {
        return Ok(vec![Outcome::problem("the indexer is not installed", UP)]);
    }
    let mut outcomes = Vec::new();
    if let Some(newer) = steps.newer {
        outcomes.push(Outcome::problem(newer, "use the newer binary"));
    }
    if !steps.pending.is_empty() {
        let found = format!("steps are missing: {}", steps.pending.join(", "));
        outcomes.push(Outcome::problem(found, UP));
    } else if let Some(other) = inspection.other_tables().await? {
        outcomes.push(Outcome::problem(
            format!("the indexer is installed for other tables than those configured: {other}"),
            "set DB_TABLE_NAME_RUNS, DB_TABLE_NAME_METADATA and DB_SCHEMA_NAME to the installed names",
        ));
    }
    if outcomes.is_empty() {
        outcomes.push(Outcome::ok(format!(
            "all {} steps of this binary are applied",
            steps.applied
        )));
    }
    Ok(outcomes)
}

async fn owner(subject: &Subject<'_>) -> Outcomes {
    Ok(vec![match subject.inspection()?.owner().await? {
        Ok(owner) => Outcome::ok(format!(
            "{owner} owns both tables and the indexer's objects"
        )),
        Err((found, advice)) => Outcome::problem(found, advice),
    }])
}

async fn privileges(subject: &Subject<'_>) -> Outcomes {
    const ROLE: &str = "\
-- doctor.role
select current_user::text";
    let row = subject.client.query_typed_one(ROLE, &[]).await?;
    let role: &str = row.get(0);
    let missing = subject.inspection()?.missing_privileges().await?;
    Ok(vec![if missing.is_empty() {
        Outcome::ok(format!(
            "the role {role} has every privilege that `run` needs"
        ))
    } else {
        Outcome::problem(
            format!("the role {role} lacks {}", missing.join(", ")),
            format!(
                "run `status-indexer migrate up --grant-to {role}` as the owner, if it is the daemon's role"
            ),
        )
    }])
}

async fn dumps(subject: &Subject<'_>) -> Outcomes {
    let roles = subject.inspection()?.roles_without_dump().await?;
    Ok(vec![if roles.is_empty() {
        Outcome::ok("every role that could dump the database still can")
    } else {
        Outcome::warning(
            format!(
                "these roles can read all tables except the indexer's, so their dumps fail: {}",
                roles.join(", ")
            ),
            "run `status-indexer migrate up --grant-dump-to ROLE` for each role that makes dumps",
        )
    }])
}

async fn definition(subject: &Subject<'_>) -> Outcomes {
    let state = store::State::load(subject.client).await?;
    let (installed, own) = (state.definition_version, store::DEFINITION_VERSION);
    Ok(vec![if installed == own {
        Outcome::ok(format!("version {installed}, as in this binary"))
    } else {
        Outcome::problem(
            format!(
                "the database has version {installed} of the definition, this binary has {own}"
            ),
            "use the binary that migrated the database, or run `status-indexer migrate up`",
        )
    }])
}

async fn triggers(subject: &Subject<'_>) -> Outcomes {
    let found = subject.inspection()?.triggers().await?;
    Ok(of_parts(found, "triggers are enabled"))
}

async fn indexes(subject: &Subject<'_>) -> Outcomes {
    let found = subject.inspection()?.indexes().await?;
    Ok(of_parts(found, "indexes are valid"))
}

fn of_parts((intact, faults): (usize, Vec<Fault>), what: &str) -> Vec<Outcome> {
    if faults.is_empty() {
        return vec![Outcome::ok(format!("all {intact} {what}"))];
    }
    let problem = |(found, advice)| Outcome::bad(State::Problem, found, advice);
    faults.into_iter().map(problem).collect()
}

async fn functions(subject: &Subject<'_>) -> Outcomes {
    let differing = subject.inspection()?.differing_functions().await?;
    Ok(vec![if differing.is_empty() {
        Outcome::ok("all functions are those of this binary")
    } else {
        Outcome::problem(
            format!(
                "these functions of the schema status_indexer are missing or replaced: {}",
                differing.join(", ")
            ),
            "run `status-indexer migrate down` and `status-indexer migrate up`",
        )
    }])
}

async fn view(subject: &Subject<'_>) -> Outcomes {
    Ok(vec![if subject.inspection()?.view_is_current().await? {
        Outcome::ok("status_indexer.runs has the columns of the runs table")
    } else {
        Outcome::warning(
            "status_indexer.runs is missing, or has other columns than the runs table",
            UP,
        )
    }])
}
