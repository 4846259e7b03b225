//! `make demo`: status-indexer on a private PostgreSQL with simulated traffic, for a person to
//! watch.
//!
//! [`demo`] is the sequence, [`playground`] the server and the installed indexer, [`watch`]
//! observes and compares, [`view`] and [`logs`] show it, [`report`] has the result. The simulated
//! clients and the server are those of the crate `testkit`. Exit codes: 0 the column equals the
//! definition, 1 it differs or the demo failed, 2 it was stopped before that was known, 64 bad
//! usage.

mod demo;
mod logs;
mod playground;
mod report;
mod view;
mod watch;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use status_indexer::exit::Exit;
use status_indexer::telemetry::LogFormat;
use status_indexer::{error, shutdown};

/// Shows status-indexer at work: a private PostgreSQL, simulated traffic, and the daemon.
#[derive(Debug, Parser)]
#[command(
    name = "status-indexer-demo",
    version,
    after_help = "Exit codes: 0 the column equals the definition, 1 it differs or the demo failed, \
                  2 stopped before the comparison, 64 bad usage."
)]
struct Cli {
    #[command(flatten)]
    demo: demo::DemoArgs,
    /// How logs are written
    #[arg(
        long,
        env = "STATUS_INDEXER_LOG_FORMAT",
        default_value = "auto",
        value_enum
    )]
    log_format: LogFormat,
    /// Which logs are written, as tracing's filter directives
    #[arg(long, env = "STATUS_INDEXER_LOG", value_name = "FILTER")]
    log: Option<String>,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let help = matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            );
            let _ = error.print();
            return exit(if help { Exit::Success } else { Exit::Usage });
        }
    };
    let filter = cli.log.as_deref().filter(|filter| !filter.is_empty());
    if let Err(error) = logs::start(cli.log_format, filter) {
        eprintln!("error: {error}");
        return exit(Exit::Usage);
    }
    match run(cli.demo) {
        Ok(code) => exit(code),
        Err(error) => {
            tracing::error!(error = error::chain(error.as_ref()), "the demo failed");
            exit(Exit::Failure)
        }
    }
}

fn exit(exit: Exit) -> ExitCode {
    ExitCode::from(exit.code())
}

fn run(args: demo::DemoArgs) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stop = shutdown::on_signal()?;
        Box::pin(demo::run(args, stop)).await
    })
}
