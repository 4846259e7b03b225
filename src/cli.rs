//! The command line: parses it, and dispatches to the commands.

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::commands::backfill::{BackfillArgs, backfill};
use crate::commands::completions::{CompletionsArgs, completions};
use crate::commands::doctor::{DoctorArgs, doctor};
use crate::commands::explain::{ExplainArgs, explain};
use crate::commands::man::{ManArgs, man};
use crate::commands::migrate::{MigrateArgs, migrate};
use crate::commands::run::{RunArgs, run};
use crate::commands::verify::{VerifyArgs, verify};
use crate::exit::{Exit, Failure};
use crate::telemetry::{self, LogFormat};
use crate::version;

/// Keeps the status of every Metaflow run in an indexed column
#[derive(Debug, Parser)]
#[command(
    name = "status-indexer",
    version = version::VERSION,
    long_version = version::LONG,
    about,
    after_help = "Exit codes: 0 success, 1 failure or drift, 2 unknown, 64 bad usage or configuration."
)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
    /// Format of the log
    #[arg(
        long,
        env = "STATUS_INDEXER_LOG_FORMAT",
        default_value = "auto",
        value_enum,
        global = true
    )]
    pub log_format: LogFormat,
    /// Log filter, in the directive syntax of Rust's tracing, such as debug [default: info]
    #[arg(long, env = "STATUS_INDEXER_LOG", value_name = "FILTER", global = true)]
    pub log: Option<String>,
}

impl Cli {
    /// Parses the command line and the environment. An empty variable counts as unset, whatever the
    /// type of its flag: charts and shells set empty ones.
    ///
    /// # Errors
    /// If they cannot be used; the error prints itself. Help is returned as an error too.
    pub fn read() -> Result<Self, clap::Error> {
        let mut command = without_empty_variables(Self::command());
        let matches = command.try_get_matches_from_mut(std::env::args_os())?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }

    /// Starts logging; call once.
    ///
    /// # Errors
    /// If the filter cannot be parsed.
    pub fn start_logs(&self) -> anyhow::Result<()> {
        let filter = self.log.as_deref().filter(|filter| !filter.is_empty());
        telemetry::start(self.log_format, filter.unwrap_or("info"))
    }
}

fn without_empty_variables(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| {
            let value = arg.get_env().and_then(std::env::var_os);
            if value.is_some_and(|value| value.is_empty()) {
                arg.env(None::<&str>)
            } else {
                arg
            }
        })
        .mut_subcommands(without_empty_variables)
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Install, upgrade, inspect or remove the database objects
    Migrate(MigrateArgs),
    /// Run the daemon: keep the column current; serve the read API, /metrics, /healthz and /readyz
    Run(Box<RunArgs>),
    /// Run the backfill at full speed, with progress; it can be stopped and resumed
    Backfill(BackfillArgs),
    /// Compare every stored status with the definition, read only; exit code 0 no drift, 1 drift,
    /// 2 unknown
    Verify(VerifyArgs),
    /// Explain the status of one run: the evidence, the rule, and when it can change
    Explain(ExplainArgs),
    /// Check the installation, read only, and say what to do; exit code 1 if there is a problem
    Doctor(DoctorArgs),
    /// Print the script with which a shell completes commands and flags
    Completions(CompletionsArgs),
    /// Print the manual page, or write those of all commands to a directory
    Man(ManArgs),
}

/// Runs a command.
///
/// # Errors
/// If it failed; the error holds the exit code.
pub async fn execute(command: Command, stop: CancellationToken) -> Result<Exit, Failure> {
    // Boxed, because a future is as large as its largest branch.
    match command {
        Command::Migrate(args) => Box::pin(migrate(args, &stop)).await,
        Command::Run(args) => Box::pin(run(*args, stop)).await,
        Command::Backfill(args) => Box::pin(backfill(args, &stop)).await,
        Command::Verify(args) => Box::pin(verify(args, &stop)).await,
        Command::Explain(args) => Box::pin(explain(args, &stop)).await,
        Command::Doctor(args) => Box::pin(doctor(args, &stop)).await,
        Command::Completions(args) => completions(&args, Cli::command()),
        Command::Man(args) => man(&args, Cli::command()),
    }
}
