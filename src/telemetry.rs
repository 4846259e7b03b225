//! Logs: text on a terminal, JSON otherwise, on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::prelude::*;

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text if standard error is a terminal, else JSON.
    Auto,
    /// Text, with colours on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error; call once.
///
/// # Errors
/// If the filter cannot be parsed.
pub fn start(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = parse(filter)?;
    let terminal = std::io::stderr().is_terminal();
    let text = match format {
        LogFormat::Text => true,
        LogFormat::Json => false,
        LogFormat::Auto => terminal,
    };
    let registry = tracing_subscriber::registry().with(filter);
    if text {
        registry
            .with(
                fmt::layer()
                    .with_writer(std::io::stderr)
                    .with_ansi(terminal)
                    .with_target(false),
            )
            .init();
    } else {
        registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_current_span(false)
                    .with_span_list(false)
                    .with_writer(std::io::stderr),
            )
            .init();
    }
    Ok(())
}

/// Starts logging to a writer that receives each event as one JSON object; call once.
///
/// # Errors
/// If the filter cannot be parsed.
pub fn start_into<W>(writer: W, filter: &str) -> anyhow::Result<()>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(writer);
    tracing_subscriber::registry()
        .with(parse(filter)?)
        .with(layer)
        .init();
    Ok(())
}

fn parse(filter: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|error| anyhow::anyhow!("cannot parse the log filter {filter:?}: {error}"))
}
