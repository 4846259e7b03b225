//! SIGTERM and SIGINT become one token; a second signal stops at once.

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code of a process that was told twice to stop: 128 + SIGINT, as shells have it.
const INTERRUPTED: i32 = 130;

/// A token that the first signal cancels.
///
/// # Errors
/// If signals cannot be caught.
pub fn on_signal() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        for attempt in 0.. {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if attempt > 0 {
                tracing::warn!(signal = name, "told again to stop; leaving at once");
                std::process::exit(INTERRUPTED);
            }
            tracing::info!(signal = name, "stopping");
            stop.cancel();
        }
    });
    Ok(token)
}
