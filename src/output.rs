//! Standard output: what commands answer. Logs go to standard error.

use std::io::{self, Write as _};

use anyhow::Context as _;

/// Writes a line, or several. A reader that has seen enough, as `head` does, is no failure: the
/// exit code still tells the outcome.
///
/// # Errors
/// If it cannot be written for another reason, such as a full disk.
pub fn say(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout().lock(), "{}", text.trim_end()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}
