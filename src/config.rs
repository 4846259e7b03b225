//! Configuration: one struct a topic, every flag with an environment variable, validated once.
//!
//! The variables are those that operators have already set for the metadata service. An empty variable
//! counts as unset. Secrets are neither shown nor logged. Used by the commands.

mod api;
mod daemon;
mod database;
mod listen;

use clap::Args;

use crate::migrate::TableNames;

pub use api::ApiArgs;
pub use daemon::DaemonArgs;
pub use database::DatabaseArgs;
pub use listen::Listen;

/// Names of upstream's tables.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Tables")]
pub struct TableArgs {
    /// Schema of the tables, if the role's search path does not find them
    #[arg(long, env = "DB_SCHEMA_NAME", value_name = "SCHEMA", global = true)]
    pub db_schema: Option<String>,
    /// Table of runs; folds to lower case unless quoted, may include a schema
    #[arg(
        long,
        env = "DB_TABLE_NAME_RUNS",
        default_value = "runs_v3",
        global = true
    )]
    pub table_runs: String,
    /// Table of metadata; folds to lower case unless quoted, may include a schema
    #[arg(
        long,
        env = "DB_TABLE_NAME_METADATA",
        default_value = "metadata_v3",
        global = true
    )]
    pub table_metadata: String,
}

/// Parameters of the definition.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Definition")]
pub struct DefinitionArgs {
    /// Seconds after which a heartbeat is stale; must equal the metadata service's value
    #[arg(long, env = "RUN_INACTIVE_CUTOFF_TIME", default_value_t = 360, value_name = "SECONDS",
          value_parser = clap::value_parser!(i64).range(1..=315_360_000), global = true)]
    pub cutoff: i64,
}

impl TableArgs {
    /// The names, for the migrator.
    #[must_use]
    pub fn names(&self) -> TableNames {
        TableNames {
            runs: self.table_runs.clone(),
            metadata: self.table_metadata.clone(),
            schema: given(self.db_schema.as_ref()).cloned(),
        }
    }
}

/// An empty value counts as unset: charts and shells set empty ones.
fn given(value: Option<&String>) -> Option<&String> {
    value.filter(|text| !text.is_empty())
}

fn defaults<T: Args>() -> T {
    let command = T::augment_args(clap::Command::new("defaults"))
        .no_binary_name(true)
        .mut_args(|arg| arg.env(None::<&str>));
    let matches = command
        .try_get_matches_from([""; 0])
        .expect("each flag has a default, or is none by default");
    T::from_arg_matches(&matches).expect("defaults are valid")
}
