//! `man`: the manual pages, made from the same definitions as `--help`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::exit::{Exit, Failure};
use crate::output::print;
use crate::version;

/// Where a page sends its reader for more.
const MANUAL: &str =
    "The manual, with a page on operation, is in the directory docs of the sources.";

/// `man`
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Directory to write status-indexer.1 and one page for each command to; without one, the first
    /// of these pages is printed
    directory: Option<PathBuf>,
}

/// Prints the page of `command`, or writes its page and those of its subcommands to a directory.
///
/// # Errors
/// If they cannot be written.
pub fn man(args: &ManArgs, command: clap::Command) -> Result<Exit, Failure> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let sections = exit_status(&command);
    match &args.directory {
        Some(directory) => write_all(&command, &sections, directory)?,
        None => print(&String::from_utf8_lossy(&page(&command, &sections)?))?,
    }
    Ok(Exit::Success)
}

/// Writes the pages of a command and its subcommands.
fn write_all(command: &clap::Command, sections: &Roff, directory: &Path) -> anyhow::Result<()> {
    let path = directory.join(format!("{}.1", title(command)));
    fs::write(&path, page(command, sections)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    for subcommand in command.get_subcommands() {
        write_all(subcommand, sections, directory)?;
    }
    Ok(())
}

/// The name of a page: that of the command, with those of its parents.
fn title(command: &clap::Command) -> &str {
    command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
}

/// One page. `Man::render` would name the sections after clap's own terms.
fn page(command: &clap::Command, sections: &Roff) -> anyhow::Result<Vec<u8>> {
    let man = Man::new(command.clone())
        .source(format!("status-indexer {}", version::VERSION))
        .date(version::commit_date().unwrap_or_default())
        .manual("status-indexer");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    sections.to_writer(&mut page)?;
    Ok(page)
}

/// The sections that all pages have: the exit codes, which the help of the program lists, and where to
/// read more.
fn exit_status(command: &clap::Command) -> Roff {
    let codes = command.get_after_help().map(ToString::to_string);
    let mut roff = Roff::default();
    roff.control("SH", ["EXIT STATUS"]);
    roff.text([roman(codes.unwrap_or_default())]);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(MANUAL)]);
    roff
}
