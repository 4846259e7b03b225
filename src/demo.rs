//! Placeholder during construction.
pub mod postgres;
use tokio_util::sync::CancellationToken;
/// `demo`
#[derive(Debug, clap::Args)]
pub struct DemoArgs {}
/// Runs.
///
/// # Errors
/// None.
pub async fn run(_: DemoArgs, _: CancellationToken) -> anyhow::Result<u8> {
    Ok(0)
}
