//! `completions`: the script with which a shell completes commands and flags.

use clap_complete::Shell;

use crate::exit::{Exit, Failure};
use crate::output::print;

/// `completions`
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell that reads the script
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script of `command` for a shell.
///
/// # Errors
/// If standard output cannot be written.
pub fn completions(args: &CompletionsArgs, mut command: clap::Command) -> Result<Exit, Failure> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, &name, &mut script);
    let script = String::from_utf8_lossy(&script);
    print(&with_one_name(&script, &name))?;
    Ok(Exit::Success)
}

/// The generator for bash writes the name of the program in two ways if it contains a hyphen, and then
/// offers nothing after a command.
fn with_one_name(script: &str, name: &str) -> String {
    script.replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__"))
}
