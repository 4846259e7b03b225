//! The binary of status-indexer, as a program to run.
//!
//! Owns the search for it and the environment that it starts in. The binary is found at run time,
//! so that this crate need not depend on the product: Cargo puts it into the directory of the
//! profile (`target/debug`), and everything that uses this crate runs from there or from a
//! directory below. `STATUS_INDEXER_TEST_BINARY` names another one. Called by [`crate::daemon`],
//! the benchmarks and the tests that start the binary themselves.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result};
use tokio::process::Command;

/// The variable that names the binary to test, instead of the one that Cargo built.
pub const VARIABLE: &str = "STATUS_INDEXER_TEST_BINARY";

const NAME: &str = "status-indexer";

/// Environment variables that would change the behaviour of the binary: by prefix, and by name.
const FOREIGN_PREFIXES: &[&str] = &["MF_METADATA_DB_", "DB_TABLE_NAME_", "STATUS_INDEXER_", "PG"];
const FOREIGN_NAMES: &[&str] = &[
    "DATABASE_URL",
    "DATABASE_URL_FILE",
    "DB_SCHEMA_NAME",
    "RUN_INACTIVE_CUTOFF_TIME",
    "USE_SEPARATE_READER_POOL",
    "PATH_PREFIX",
    "RUST_LOG",
];

/// The path of the binary.
///
/// # Errors
/// If it has not been built.
pub fn find() -> Result<PathBuf> {
    if let Some(named) = env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        return Ok(PathBuf::from(named));
    }
    let own = env::current_exe().context("the path of the running executable is unknown")?;
    find_from(&own).with_context(|| {
        format!(
            "there is no {NAME} beside {} or one directory up: run `cargo build` first (with the \
             same profile), or set {VARIABLE} to the binary",
            own.display()
        )
    })
}

/// The path of the binary, for tests.
///
/// # Panics
/// If it has not been built.
#[must_use]
pub fn path() -> PathBuf {
    find().unwrap_or_else(|error| panic!("{error:#}"))
}

/// Binaries are in the directory of the profile; tests and benchmarks are in `deps` below it.
fn find_from(executable: &Path) -> Option<PathBuf> {
    executable
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(NAME))
        .find(|candidate| candidate.is_file())
}

/// The binary without arguments and input, and without the variables of the machine that would
/// configure it.
///
/// # Panics
/// If it has not been built.
#[must_use]
pub fn command() -> Command {
    configured(Command::new(path()))
}

/// The same with a limit on open files.
///
/// # Panics
/// If it has not been built.
#[must_use]
pub fn command_with_open_files(limit: u32) -> Command {
    let mut shell = Command::new("sh");
    let script = format!("ulimit -n {limit}; exec \"$0\" \"$@\"");
    shell.arg("-c").arg(script).arg(path());
    configured(shell)
}

fn configured(mut command: Command) -> Command {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if FOREIGN_PREFIXES
            .iter()
            .any(|prefix| text.starts_with(prefix))
            || FOREIGN_NAMES.iter().any(|known| text == *known)
        {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_found_from_the_profile_directory_and_from_deps() {
        let target = tempfile::tempdir().expect("a temporary directory");
        let binary = target.path().join("debug").join(NAME);
        let deps = target.path().join("debug/deps");
        std::fs::create_dir_all(&deps).expect("a fresh directory");
        assert_eq!(find_from(&deps.join("all-1234")), None);
        std::fs::write(&binary, "").expect("a fresh file");
        assert_eq!(find_from(&deps.join("all-1234")), Some(binary.clone()));
        assert_eq!(find_from(&target.path().join("debug/soak")), Some(binary));
        assert_eq!(find_from(&deps.join("a/b/all-1234")), None);
    }
}
