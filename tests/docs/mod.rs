//! The documentation against the code.
//!
//! Promises that tables of options and metrics equal the declarations, and that commands, targets
//! and links exist. The helpers to read the repository's files also serve [`crate::deploy`].

mod readme;

use std::path::{Path, PathBuf};

/// A file of the repository.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

pub(crate) fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every named flag of a command and of its subcommands.
pub(crate) fn flags(command: &clap::Command) -> Vec<&clap::Arg> {
    let own = command.get_arguments().filter(|arg| {
        arg.get_long()
            .is_some_and(|long| !["help", "version"].contains(&long))
    });
    own.chain(command.get_subcommands().flat_map(flags))
        .collect()
}
