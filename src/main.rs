//! `status-indexer`: parses the command line, starts logging and the runtime, and sets the exit
//! code.

use std::process::ExitCode;

use clap::error::ErrorKind;
use status_indexer::cli::{Cli, execute};
use status_indexer::error;
use status_indexer::exit::{Exit, Failure};
use status_indexer::shutdown;

fn main() -> ExitCode {
    run().code().into()
}

/// Keeps the secrets of this process to it: the system writes no core dump, and other processes of the
/// same user can neither attach to it nor read its memory and environment. Containers of a pod may
/// share a user and a process namespace. Tracing as root still works.
fn protect_memory() {
    // Where the system refuses, the process is as protected as any other.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_dumpable(false);
}

fn run() -> Exit {
    protect_memory();
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => {
            let requested = matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            );
            let _ = error.print();
            return if requested {
                Exit::Success
            } else {
                Exit::Usage
            };
        }
    };
    if let Err(error) = cli.start_logs() {
        eprintln!("error: {error}");
        return Exit::Usage;
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
    match outcome {
        Ok(exit) => exit,
        Err(failure) => {
            let (exit, error) = failure.into_parts();
            tracing::error!(error = error::chain(error.as_ref()), "command failed");
            exit
        }
    }
}
