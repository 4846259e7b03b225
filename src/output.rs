//! Standard output: the answers of commands. Logs go to standard error.

use std::io::{self, Write as _};

use anyhow::Context as _;

/// Prints one or more lines. A closed pipe, as after `head`, is not an error: the exit code still
/// carries the outcome.
///
/// # Errors
/// If standard output cannot be written for another reason, such as a full disk.
pub fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout().lock(), "{}", text.trim_end()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}
