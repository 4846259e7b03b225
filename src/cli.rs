//! The command line: what each command is, and what it exits with.

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::backfill::{Speed, backfill};
use crate::config::{ApiArgs, DaemonArgs, DatabaseArgs, DefinitionArgs, TableArgs};
use crate::daemon::Daemon;
use crate::explain::explain;
use crate::migrate;
use crate::output::say;
use crate::pg::Purpose;
use crate::telemetry::{self, LogFormat};
use crate::verify;

/// Bad usage or configuration, as in sysexits.h.
pub const EXIT_USAGE: u8 = 64;
/// Drift, or failure.
pub const EXIT_FAILURE: u8 = 1;
/// It could not be told.
pub const EXIT_UNKNOWN: u8 = 2;

/// Keeps the status of every Metaflow run a fact that can be looked up.
#[derive(Debug, Parser)]
#[command(
    name = "status-indexer",
    version,
    about,
    after_help = "Exit codes: 0 done, 1 failure or drift, 2 could not tell, 64 bad usage or configuration."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How logs are written
    #[arg(
        long,
        env = "STATUS_INDEXER_LOG_FORMAT",
        default_value = "auto",
        value_enum,
        global = true
    )]
    pub log_format: LogFormat,
    /// Which logs are written, as tracing's filter directives [default: info]
    #[arg(long, env = "STATUS_INDEXER_LOG", value_name = "FILTER", global = true)]
    pub log: Option<String>,
}

impl Cli {
    /// Starts logging; call once.
    ///
    /// # Errors
    /// If the filter cannot be read.
    pub fn start_logs(&self) -> anyhow::Result<()> {
        let filter = self.log.as_deref().filter(|filter| !filter.is_empty());
        telemetry::start(self.log_format, filter.unwrap_or("info"))
    }
}

impl Cli {
    /// Reads the command line and the environment. A variable that is set to nothing counts as
    /// unset, whatever its flag's type: charts and shells set empty ones.
    ///
    /// # Errors
    /// If they cannot be used; the error prints itself, and is also how help is shown.
    pub fn read() -> Result<Self, clap::Error> {
        let mut command = without_empty_variables(Self::command());
        let matches = command.try_get_matches_from_mut(std::env::args_os())?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
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
    /// Run the daemon: index, sweep, and serve the read API, /metrics, /healthz and /readyz
    Run(RunArgs),
    /// Make the first pass at full speed, with progress; can be stopped and resumed
    Backfill(BackfillArgs),
    /// Compare every stored status with the definition, changing nothing: 0 no drift, 1 drift
    /// (listed), 2 could not tell
    Verify(VerifyArgs),
    /// Say why a run has its status: the evidence, the rule, and when it can change
    Explain(ExplainArgs),
}

/// What every command that meets a database takes.
#[derive(Debug, Args)]
pub struct Site {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    tables: TableArgs,
    #[command(flatten)]
    definition: DefinitionArgs,
}

/// `migrate`
#[derive(Debug, Args)]
pub struct MigrateArgs {
    #[command(subcommand)]
    direction: Option<Direction>,
    /// A role to grant what `run` needs, where the daemon does not run as the tables' owner
    #[arg(
        long,
        env = "STATUS_INDEXER_GRANT_TO",
        value_name = "ROLE",
        global = true
    )]
    grant_to: Option<String>,
    #[command(flatten)]
    site: Site,
}

/// Which way to migrate.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Direction {
    /// Install or upgrade (the default); safe to run again, also from several places at once
    Up,
    /// Remove every trace; stop the daemons and the readers of the column first
    Down,
    /// Say what is installed, and whether it is whole
    Status,
}

/// `run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Migrate up before starting
    #[arg(long, env = "STATUS_INDEXER_MIGRATE", value_parser = clap::builder::BoolishValueParser::new())]
    migrate: bool,
    #[command(flatten)]
    daemon: DaemonArgs,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    site: Site,
}

/// `backfill`
#[derive(Debug, Args)]
pub struct BackfillArgs {
    #[command(flatten)]
    speed: Speed,
    #[command(flatten)]
    site: Site,
}

/// `verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Only this flow's runs
    #[arg(long, value_name = "FLOW")]
    flow: Option<String>,
    /// Print JSON, one object a wrong run, then one with the counts
    #[arg(long)]
    json: bool,
    /// Runs that are compared by one statement
    #[arg(long, env = "STATUS_INDEXER_VERIFY_BATCH_SIZE", default_value_t = 5_000, value_name = "RUNS",
          value_parser = clap::value_parser!(i32).range(100..=50_000))]
    batch_size: i32,
    #[command(flatten)]
    site: Site,
}

/// `explain`
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The flow's name
    flow: String,
    /// The run's number, or its own id
    run: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    site: Site,
}

/// What a command that ends by itself ends with.
#[derive(Debug)]
pub enum Failure {
    /// The configuration cannot be used.
    Usage(anyhow::Error),
    /// It was tried and failed.
    Failed(anyhow::Error),
    /// It could not be told.
    Unknown(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Runs a command; the code to exit with.
///
/// # Errors
/// What went wrong, by the code to exit with.
pub async fn execute(command: Command, stop: CancellationToken) -> Result<u8, Failure> {
    // Boxed, because a future is as large as the largest command in it.
    match command {
        Command::Migrate(args) => Box::pin(migrate(args, &stop)).await,
        Command::Run(args) => Box::pin(run(args, stop)).await,
        Command::Backfill(args) => {
            let connector = args.site.connector()?;
            let done = Box::pin(backfill(&connector, &args.speed, &stop)).await?;
            Ok(if done { 0 } else { EXIT_FAILURE })
        }
        Command::Verify(args) => Box::pin(prove(args, &stop)).await,
        Command::Explain(args) => Box::pin(tell(args)).await,
    }
}

impl Site {
    fn connector(&self) -> Result<crate::pg::Connector, Failure> {
        self.database.connector().map_err(Failure::Usage)
    }

    fn migration(&self, grant_to: Option<String>) -> migrate::Options {
        migrate::Options {
            names: self.tables.names(),
            cutoff_secs: self.definition.cutoff,
            grant_to,
        }
    }
}

async fn migrate(args: MigrateArgs, stop: &CancellationToken) -> Result<u8, Failure> {
    let connector = args.site.connector()?;
    let names = args.site.tables.names();
    let grant_to = args.grant_to.filter(|role| !role.is_empty());
    match args.direction.unwrap_or(Direction::Up) {
        Direction::Up => {
            migrate::up(&connector, &args.site.migration(grant_to), stop).await?;
            Ok(0)
        }
        Direction::Down if grant_to.is_some() => Err(Failure::Usage(anyhow::anyhow!(
            "--grant-to goes with `migrate up`; `migrate down` takes back all that was granted"
        ))),
        Direction::Down => {
            migrate::down(&connector, &names, stop).await?;
            Ok(0)
        }
        Direction::Status => {
            let (report, whole) = migrate::status(&connector, &names).await?;
            say(&report)?;
            Ok(if whole { 0 } else { EXIT_FAILURE })
        }
    }
}

async fn run(args: RunArgs, stop: CancellationToken) -> Result<u8, Failure> {
    let replica = args.api.replica().map_err(Failure::Usage)?;
    let reader = args.site.database.connector_to(replica);
    let daemon = Daemon {
        connector: args.site.connector()?,
        reader: reader.map_err(Failure::Usage)?,
        cutoff_secs: args.site.definition.cutoff,
        migrate: args.migrate.then(|| args.site.migration(None)),
        args: args.daemon,
        api: args.api,
    };
    daemon.run(stop).await?;
    Ok(0)
}

async fn prove(args: VerifyArgs, stop: &CancellationToken) -> Result<u8, Failure> {
    let connector = args.site.connector()?;
    let options = verify::Options {
        flow: args.flow,
        json: args.json,
        batch_size: args.batch_size,
        cutoff_secs: args.site.definition.cutoff,
    };
    let verdict = verify::verify(&connector, &options, stop)
        .await
        .map_err(Failure::Unknown)?;
    Ok(verdict.exit_code())
}

async fn tell(args: ExplainArgs) -> Result<u8, Failure> {
    let connector = args.site.connector()?;
    let client = connector
        .connect(Purpose::Look)
        .await
        .map_err(|error| Failure::Unknown(error.into()))?;
    let answer = explain(&client, &args.flow, &args.run)
        .await
        .map_err(|error| Failure::Unknown(error.into()))?;
    let Some(explanation) = answer else {
        return Err(Failure::Unknown(anyhow::anyhow!(
            "there is no run {} of the flow {}",
            args.run,
            args.flow
        )));
    };
    if explanation.cutoff_secs != args.site.definition.cutoff {
        tracing::warn!(
            configured = args.site.definition.cutoff,
            stored = explanation.cutoff_secs,
            "the cutoff in the database is used, not the configured one"
        );
    }
    if args.json {
        let text = serde_json::to_string_pretty(&explanation).map_err(anyhow::Error::from)?;
        say(&text)?;
    } else {
        say(&explanation.to_text())?;
    }
    let wrong = !explanation.agrees && explanation.believable && !explanation.queued;
    Ok(if wrong { EXIT_FAILURE } else { 0 })
}
