//! What the documentation and the deployment files say is true of the binary beside them.
//!
//! Owns no behaviour. Promises that the README's tables are what the code declares, that its
//! commands are ones the binary takes, and that manifests set only what it knows.

mod readme;

use std::path::{Path, PathBuf};

/// A file of the repository.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

pub(crate) fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every flag of a command with a name of its own, the commands below it included.
pub(crate) fn flags(command: &clap::Command) -> Vec<&clap::Arg> {
    let own = command.get_arguments().filter(|arg| {
        arg.get_long()
            .is_some_and(|long| !["help", "version"].contains(&long))
    });
    own.chain(command.get_subcommands().flat_map(flags))
        .collect()
}
