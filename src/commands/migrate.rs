//! `migrate`: installs, upgrades, inspects and removes the database objects.

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use super::{ConnectionArgs, WaitArgs};
use crate::exit::{Exit, Failure};
use crate::migrate;
use crate::output::print;

/// `migrate`
#[derive(Debug, Args)]
pub struct MigrateArgs {
    #[command(subcommand)]
    direction: Option<Direction>,
    /// Role to grant the privileges that `run` needs, if the daemon does not run as the owner of the
    /// tables
    #[arg(
        long,
        env = "STATUS_INDEXER_GRANT_TO",
        value_name = "ROLE",
        global = true
    )]
    grant_to: Option<String>,
    /// Role to grant the privileges that a dump of the database needs; repeatable
    #[arg(
        long,
        env = "STATUS_INDEXER_GRANT_DUMP_TO",
        value_name = "ROLE",
        value_delimiter = ',',
        global = true
    )]
    grant_dump_to: Vec<String>,
    /// Continue although the runs table is published: the subscribers have its columns already
    #[arg(
        long,
        env = "STATUS_INDEXER_ALLOW_PUBLICATIONS",
        value_parser = clap::builder::BoolishValueParser::new(),
        global = true
    )]
    allow_publications: bool,
    /// Also store when each run ended, with three indexes, for the listings of Metaflow's web UI; takes
    /// effect after a backfill that writes every run
    #[arg(
        long,
        env = "STATUS_INDEXER_UI",
        value_parser = clap::builder::BoolishValueParser::new(),
        global = true
    )]
    ui: bool,
    /// Remove what --ui stores: the ends of runs and their three indexes
    #[arg(long, global = true)]
    no_ui: bool,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Which way to migrate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum Direction {
    /// Install or upgrade (the default); safe to repeat, also from several places at once
    Up,
    /// Remove all objects; stop the daemons and the readers of the column first
    Down,
    /// Show what is installed; exit code 1 if something is missing
    Status,
}

/// Migrates.
///
/// # Errors
/// If the database cannot be read or changed.
pub async fn migrate(args: MigrateArgs, stop: &CancellationToken) -> Result<Exit, Failure> {
    let connector = args.connection.connector()?;
    let names = args.connection.tables.names();
    let grant_to = args.grant_to.filter(|role| !role.is_empty());
    let direction = args.direction.unwrap_or(Direction::Up);
    if direction == Direction::Down && grant_to.is_some() {
        return Err(Failure::Usage(anyhow::anyhow!(
            "--grant-to is an option of `migrate up`; `migrate down` revokes all that was granted"
        )));
    }
    let ui = match (args.ui, args.no_ui) {
        (false, false) => migrate::Ui::AsIs,
        (true, false) => migrate::Ui::Keep,
        (false, true) => migrate::Ui::Remove,
        (true, true) => {
            return Err(Failure::Usage(anyhow::anyhow!(
                "--ui and --no-ui contradict each other: give one of them, and unset STATUS_INDEXER_UI \
                 for --no-ui"
            )));
        }
    };
    if args.no_ui && direction != Direction::Up {
        return Err(Failure::Usage(anyhow::anyhow!(
            "--no-ui is an option of `migrate up`; `migrate down` removes everything"
        )));
    }
    if direction != Direction::Status && !args.wait.for_connection(&connector, stop).await? {
        return Ok(Exit::Failure);
    }
    match direction {
        Direction::Up => {
            let options = migrate::Options {
                grant_to,
                grant_dump_to: args.grant_dump_to,
                allow_publications: args.allow_publications,
                ui,
                ..args.connection.migration()
            };
            migrate::up(&connector, &options, stop).await?;
            Ok(Exit::Success)
        }
        Direction::Down => {
            migrate::down(&connector, &names, stop).await?;
            Ok(Exit::Success)
        }
        Direction::Status => {
            let (report, complete) = migrate::status(&connector, &names).await?;
            print(&report)?;
            Ok(if complete {
                Exit::Success
            } else {
                Exit::Failure
            })
        }
    }
}
