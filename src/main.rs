//! `status-indexer`: parses, starts logging and the runtime, and turns the outcome into an exit code.

use std::process::ExitCode;

use clap::error::ErrorKind;
use status_indexer::cli::{Cli, EXIT_FAILURE, EXIT_UNKNOWN, EXIT_USAGE, Failure, execute};
use status_indexer::{error, shutdown};

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => {
            let asked = matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            );
            let _ = error.print();
            return ExitCode::from(if asked { 0 } else { EXIT_USAGE });
        }
    };
    if let Err(error) = cli.start_logs() {
        eprintln!("error: {error}");
        return ExitCode::from(EXIT_USAGE);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(async {
            let stop = shutdown::on_signal()?;
            execute(cli.command, stop).await
        }),
        Err(error) => Err(Failure::Failed(error.into())),
    };
    let (code, error) = match outcome {
        Ok(code) => return ExitCode::from(code),
        Err(Failure::Usage(error)) => (EXIT_USAGE, error),
        Err(Failure::Failed(error)) => (EXIT_FAILURE, error),
        Err(Failure::Unknown(error)) => (EXIT_UNKNOWN, error),
    };
    tracing::error!(error = error::chain(error.as_ref()), "gave up");
    ExitCode::from(code)
}
