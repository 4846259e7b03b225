//! The commands, one file each: its options, its code and its exit code.

pub mod backfill;
pub mod explain;
pub mod migrate;
pub mod run;
pub mod verify;

use crate::config::{DatabaseArgs, DefinitionArgs, TableArgs};
use crate::exit::Failure;
use crate::pg::Connector;

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

impl ConnectionArgs {
    fn connector(&self) -> Result<Connector, Failure> {
        self.database.connector().map_err(Failure::Usage)
    }

    fn migration(&self, grant_to: Option<String>) -> crate::migrate::Options {
        crate::migrate::Options {
            names: self.tables.names(),
            cutoff_secs: self.definition.cutoff,
            grant_to,
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
