//! `doctor`: checks an installation, and says what to do about each finding.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::ConnectionArgs;
use crate::doctor::{self, Options, State};
use crate::exit::{Exit, Failure};
use crate::output::print;

/// `doctor`
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Maximum seconds to wait for a connection to one address
    #[arg(long, env = "STATUS_INDEXER_DOCTOR_WAIT", default_value_t = 5, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3_600))]
    wait: u64,
    /// Maximum seconds for all checks; one that is not done by then is reported as unknown
    #[arg(long, env = "STATUS_INDEXER_DOCTOR_TIMEOUT", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3_600))]
    timeout: u64,
    /// Maximum seconds that an event may stay in the queue before /readyz returns 503
    #[arg(long, env = "STATUS_INDEXER_MAX_EVENT_AGE", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    max_event_age: u64,
    /// Seconds after which an open transaction is reported
    #[arg(long, env = "STATUS_INDEXER_MAX_TRANSACTION_AGE", default_value_t = 300, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(0..=86_400))]
    max_transaction_age: u64,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Runs all checks and prints what they find. The exit code is 1 if one of them found a problem.
///
/// # Errors
/// If the configuration cannot be used, or it was stopped.
pub async fn doctor(args: DoctorArgs, stop: &CancellationToken) -> Result<Exit, Failure> {
    let options = Options {
        connector: args.connection.connector()?,
        names: args.connection.tables.names(),
        cutoff_secs: args.connection.definition.cutoff,
        wait: Duration::from_secs(args.wait),
        limit: Duration::from_secs(args.timeout),
        max_event_age: Duration::from_secs(args.max_event_age),
        max_transaction_age: Duration::from_secs(args.max_transaction_age),
    };
    let examined = stop.run_until_cancelled(doctor::examine(&options)).await;
    let Some(report) = examined else {
        return Err(Failure::Failed(anyhow::anyhow!("stopped")));
    };
    if args.json {
        let text = serde_json::to_string_pretty(&report.to_json()).map_err(anyhow::Error::from)?;
        print(&text)?;
    } else {
        print(&report.to_text())?;
    }
    Ok(match report.state() {
        State::Problem => Exit::Failure,
        _ => Exit::Success,
    })
}
