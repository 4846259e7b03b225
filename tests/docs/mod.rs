//! The documents against the code: their statements are true, and they use standard terms.
//!
//! Owns no behaviour. [`tables`] holds the generated tables to the code, [`commands`] the commands that
//! are shown, [`links`] files and headings, [`versions`] those of PostgreSQL, [`language`]
//! the words. The readers of files and flags here also serve the tests of `deploy/`.

mod commands;
mod language;
mod links;
pub(crate) mod tables;
mod versions;

use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use status_indexer::cli::Cli;

/// A file of the repository.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

pub(crate) fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every flag of a command with a name of its own, those of its subcommands included.
pub(crate) fn flags(command: &clap::Command) -> Vec<&clap::Arg> {
    let own = command.get_arguments().filter(|arg| {
        arg.get_long()
            .is_some_and(|long| !["help", "version"].contains(&long))
    });
    own.chain(command.get_subcommands().flat_map(flags))
        .collect()
}

fn cli() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    command
}

/// Every document for readers, by its path.
fn documents() -> Vec<String> {
    let mut found: Vec<String> = ["README", "CONTRIBUTING", "SECURITY", "CHANGELOG"]
        .map(|name| format!("{name}.md"))
        .into();
    for directory in ["metadata-service", "helm/status-indexer"] {
        found.push(format!("deploy/{directory}/README.md"));
    }
    for entry in std::fs::read_dir(path("docs")).expect("the directory exists") {
        let name = entry.expect("it can be listed").file_name();
        found.push(format!("docs/{}", name.to_string_lossy()));
    }
    found
}

/// The lines in fences of a language.
fn fenced(document: &str, language: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inside = None;
    for line in document.lines() {
        match (line.trim().strip_prefix("```"), inside) {
            (Some(opened), None) => inside = Some(opened.to_owned()),
            (Some(_), Some(_)) => inside = None,
            (None, Some(ref opened)) => {
                if opened == language {
                    lines.push(line.trim().to_owned());
                }
                inside = Some(opened.clone());
            }
            (None, None) => inside = None,
        }
    }
    lines
}
