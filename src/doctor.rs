//! Checks an installation for everything that makes statuses wrong or late, or endangers the database.
//!
//! Owns the list of checks and the order in which they run. Promises that nothing is changed: all reads
//! are in one read-only transaction, and only the test of notifications sends a message, to itself; that
//! each check and all of them together have a limit; and that every check is reported, whatever fails.
//! The conditions are those of the modules that act on them: a check asks, and says what to do. Called
//! by the command `doctor`.

mod cleanup;
mod clock;
mod column;
mod connection;
mod installation;
mod leader;
mod queue;
mod replication;
mod report;
mod server;
mod settings;

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::error::{Error, chain};
use crate::migrate::inspect::{self, Inspection};
use crate::migrate::{TableNames, Tables};
use crate::pg::{Connector, SessionMode, SessionProfile};

pub use report::{Finding, Outcome, Report, State};

/// The limit on one check: longer than the server's own limit on its statements.
const CHECK_LIMIT: Duration = Duration::from_secs(6);

/// The settings of the transaction, besides those of every read-only one.
const BEGIN: &str = "\
-- doctor.begin
set local statement_timeout = '5s';
set local lock_timeout = '1s'";

/// What to check, and how long.
#[derive(Debug)]
pub struct Options {
    /// Connects to the database.
    pub connector: Connector,
    /// The tables, as configured.
    pub names: TableNames,
    /// The cutoff, as configured, seconds.
    pub cutoff_secs: i64,
    /// The limit on a connection to one address.
    pub wait: Duration,
    /// The limit on all checks.
    pub limit: Duration,
    /// An event that has been in the queue for longer is delayed.
    pub max_event_age: Duration,
    /// A transaction that is open for longer is reported.
    pub max_transaction_age: Duration,
}

/// What a check of the database reads.
struct Subject<'a> {
    client: &'a Client,
    options: &'a Options,
    tables: Option<&'a Tables>,
    /// None if it could not be detected.
    mode: Option<SessionMode>,
}

impl Subject<'_> {
    /// The tables and what is installed; only for checks that need the tables.
    fn inspection(&self) -> anyhow::Result<Inspection<'_>> {
        let tables = self
            .tables
            .ok_or_else(|| anyhow::anyhow!("the tables were not found"))?;
        Ok(Inspection::new(self.client, tables))
    }
}

/// What must have been found before a check makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Server,
    Tables,
    Installation,
}

type Outcomes = anyhow::Result<Vec<Outcome>>;

/// One check of the database.
struct Check {
    name: &'static str,
    needs: Needs,
    run: for<'a> fn(&'a Subject<'_>) -> BoxFuture<'a, Outcomes>,
}

/// All checks of the database, in the order of the report.
fn checks() -> impl Iterator<Item = &'static Check> {
    [
        server::CHECKS,
        settings::CHECKS,
        clock::CHECKS,
        installation::CHECKS,
        column::CHECKS,
        leader::CHECKS,
        queue::CHECKS,
        cleanup::CHECKS,
        replication::CHECKS,
    ]
    .into_iter()
    .flatten()
}

/// The names of all checks, in the order of the report.
#[must_use]
pub fn names() -> Vec<&'static str> {
    let of_database = checks().map(|check| check.name);
    connection::NAMES.into_iter().chain(of_database).collect()
}

/// Runs all checks.
pub async fn examine(options: &Options) -> Report {
    let deadline = Instant::now() + options.limit;
    let mut report = Report::default();
    let reached = connection::survey(options, deadline, &mut report).await;
    let opened = match reached {
        Ok(()) => open(options, deadline).await,
        Err(reason) => Err(reason),
    };
    match opened {
        Ok(client) => {
            let mode = connection::mode(options, deadline, &mut report).await;
            examine_database(options, &client, mode, deadline, &mut report).await;
        }
        Err(reason) => {
            let left = names().into_iter().filter(|name| !report.contains(name));
            let left: Vec<&str> = left.collect();
            for name in left {
                report.add(name, Outcome::not_done(&reason));
            }
        }
    }
    report
}

/// Opens the transaction of all checks: on the primary, or else on any server that there is.
async fn open(options: &Options, deadline: Instant) -> Result<Client, String> {
    let begin = format!("{}{BEGIN}", SessionProfile::ReadOnlyTransaction.session());
    let connector = &options.connector;
    let opening = async {
        let primary = connector.open(SessionProfile::Listener, &begin).await;
        match primary {
            Ok(opened) => Ok(opened),
            Err(_) => {
                connector
                    .open(SessionProfile::ReadOnlyTransaction, &begin)
                    .await
            }
        }
    };
    let until = deadline.min(Instant::now() + 2 * options.wait);
    match timeout_at(until, opening).await {
        Ok(Ok((client, traffic))) => {
            tokio::spawn(crate::pg::drive(traffic));
            Ok(client)
        }
        Ok(Err(error)) => Err(chain(&error)),
        Err(_) => Err("no connection within the limit".to_owned()),
    }
}

async fn examine_database(
    options: &Options,
    client: &Client,
    mode: Option<SessionMode>,
    deadline: Instant,
    report: &mut Report,
) {
    let mut run = Run {
        client,
        deadline,
        ended: None,
    };
    let tables = run
        .attempt(Inspection::find_tables(client, &options.names))
        .await;
    let is_installed = run.attempt(inspect::is_installed(client)).await;
    let subject = Subject {
        client,
        options,
        tables: tables.as_ref().ok(),
        mode,
    };
    for check in checks() {
        let missing = match (check.needs, &tables, &is_installed) {
            (Needs::Tables | Needs::Installation, Err(_), _) => Some("the tables were not found"),
            (Needs::Installation, _, Ok(false)) => Some("the indexer is not installed"),
            _ => None,
        };
        if let Some(reason) = missing {
            report.add(check.name, Outcome::not_done(reason));
            continue;
        }
        // The reason why there are no tables belongs to the check that looks for them.
        let found = if let (installation::TABLES, Err(error)) = (check.name, &tables) {
            Ok(vec![installation::no_tables(error)])
        } else {
            run.attempt((check.run)(&subject)).await
        };
        match found {
            Ok(outcomes) => outcomes
                .into_iter()
                .for_each(|outcome| report.add(check.name, outcome)),
            Err(error) => report.add(check.name, of_error(&error)),
        }
    }
}

/// The checks over one connection, until it is lost or the time is over.
struct Run<'a> {
    client: &'a Client,
    deadline: Instant,
    /// Why no further check can run.
    ended: Option<String>,
}

impl Run<'_> {
    /// Runs one check within a savepoint, so that an error does not end the transaction of the others.
    async fn attempt<T>(
        &mut self,
        check: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        if let Some(reason) = &self.ended {
            anyhow::bail!("{reason}");
        }
        let limit = self.deadline.min(Instant::now() + CHECK_LIMIT);
        let bounded = timeout_at(limit, async {
            self.client
                .batch_execute("-- doctor.savepoint\nsavepoint doctor")
                .await?;
            let outcome = check.await;
            let end = if outcome.is_ok() {
                "-- doctor.release\nrelease savepoint doctor"
            } else {
                "-- doctor.rollback\nrollback to savepoint doctor; release savepoint doctor"
            };
            self.client.batch_execute(end).await?;
            outcome
        });
        let outcome = bounded.await;
        if self.client.is_closed() {
            self.ended = Some("the connection was lost".to_owned());
        }
        outcome.unwrap_or_else(|_| {
            // The statement may still run: its connection is of no use any more.
            let reason = if Instant::now() >= self.deadline {
                "all checks together took longer than --timeout"
            } else {
                "the server does not answer"
            };
            self.ended = Some(reason.to_owned());
            anyhow::bail!("{reason}")
        })
    }
}

/// What to report of a check that failed.
fn of_error(error: &anyhow::Error) -> Outcome {
    let text = chain(error.as_ref());
    match sqlstate(error) {
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => Outcome::unknown(
            format!("cannot see: {text}"),
            "run doctor as the daemon's role or as the owner of the tables",
        ),
        Some(code) if ["42P01", "42883", "42703", "3F000"].contains(&code.code()) => {
            Outcome::not_done(&format!("parts of the installation are missing: {text}"))
        }
        _ => Outcome::not_done(&text),
    }
}

fn sqlstate(error: &anyhow::Error) -> Option<&SqlState> {
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<Error>() {
            return error.sqlstate();
        }
        cause.downcast_ref::<tokio_postgres::Error>()?.code()
    })
}
