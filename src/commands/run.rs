//! `run`: the daemon.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::ConnectionArgs;
use crate::config::{ApiArgs, DaemonArgs};
use crate::daemon::{Daemon, ListenerAccess};
use crate::exit::{Exit, Failure};
use crate::http::Access;

/// `run`
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Run `migrate up` before starting
    #[arg(long, env = "STATUS_INDEXER_MIGRATE", value_parser = clap::builder::BoolishValueParser::new())]
    migrate: bool,
    #[command(flatten)]
    daemon: DaemonArgs,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Runs the daemon until `stop`.
///
/// # Errors
/// If it cannot start, or a stage fails.
pub async fn run(args: RunArgs, stop: CancellationToken) -> Result<Exit, Failure> {
    let max_age = Duration::from_secs(args.daemon.pool_max_age);
    let connector = args.connection.database.daemon_connector();
    let mut connector = connector.map_err(Failure::Usage)?.with_max_age(max_age);
    let mut listen = None;
    if let Some(url) = args.daemon.listen_url() {
        let direct = args.connection.database.connector_for_listen(url);
        let direct = direct.map_err(Failure::Usage)?;
        listen = Some(direct.with_purpose("for LISTEN, by --listen-url"));
        connector = connector.with_purpose("for statements");
    }
    let reader = match args.api.replica().map_err(Failure::Usage)? {
        Some(host) => {
            let replica = args.connection.database.connector_to(host);
            replica.map_err(Failure::Usage)?.with_max_age(max_age)
        }
        None => connector.clone(),
    };
    let access = ListenerAccess {
        metrics: Access::load(args.daemon.access_files()).map_err(Failure::Usage)?,
        api: Access::load(args.api.access_files()).map_err(Failure::Usage)?,
    };
    let daemon = Daemon {
        access,
        connector,
        listen,
        reader,
        cutoff_secs: args.connection.definition.cutoff,
        migrate: args.migrate.then(|| args.connection.migration()),
        args: args.daemon,
        api: args.api,
    };
    daemon.run(stop).await?;
    Ok(Exit::Success)
}
