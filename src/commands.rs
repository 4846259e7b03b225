//! The commands, one file each: its options, its code and its exit code.

pub mod backfill;
pub mod completions;
pub mod doctor;
pub mod explain;
pub mod man;
pub mod migrate;
pub mod run;
pub mod verify;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::{DatabaseArgs, DefinitionArgs, TableArgs};
use crate::exit::Failure;
use crate::pg::Connector;
use crate::wait;

/// The options of every command that connects to a database.
#[derive(Debug, clap::Args)]
pub struct ConnectionArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    tables: TableArgs,
    #[command(flatten)]
    definition: DefinitionArgs,
}

/// The option of the commands that wait for the database.
#[derive(Debug, clap::Args)]
struct WaitArgs {
    /// Maximum seconds to wait for a database that is starting, unreachable or refuses the login
    #[arg(long, env = "STATUS_INDEXER_WAIT", default_value_t = 30, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(0..=86_400), global = true)]
    wait: u64,
}

impl WaitArgs {
    /// Waits until a connection can be opened; false if stopped before.
    async fn for_connection(
        &self,
        connector: &Connector,
        stop: &CancellationToken,
    ) -> anyhow::Result<bool> {
        let limit = Duration::from_secs(self.wait);
        wait::for_connection(connector, limit, stop).await
    }
}

impl ConnectionArgs {
    fn connector(&self) -> Result<Connector, Failure> {
        self.database.connector().map_err(Failure::Usage)
    }

    fn migration(&self) -> crate::migrate::Options {
        crate::migrate::Options {
            names: self.tables.names(),
            cutoff_secs: self.definition.cutoff,
            grant_to: None,
            grant_dump_to: Vec::new(),
            allow_publications: false,
            ui: crate::migrate::Ui::AsIs,
        }
    }

    /// Warns where the configured cutoff is not the one in force, which the command uses.
    fn check_cutoff(&self, in_force: i64) {
        if self.definition.cutoff != in_force {
            tracing::warn!(
                configured = self.definition.cutoff,
                in_force,
                "using the cutoff in force in the database, not the configured one"
            );
        }
    }
}
