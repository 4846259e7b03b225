//! Finds PostgreSQL's programs on this machine.
//!
//! Owns the order of the search: `STATUS_INDEXER_PG_BIN`, then PATH, then `pg_config`, then the
//! directories that packages use, newest version first. Promises a directory with both `initdb` and
//! `postgres`, or an error that says what to install. `.ci/setup` searches in the same order. A
//! server's directory may lack the client programs: [`find_client`] searches the other places too.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

/// Names the directory, and replaces the search.
const VARIABLE: &str = "STATUS_INDEXER_PG_BIN";

/// Where packages install the programs: parent, prefix of the directory's name, rest of the path.
const USUAL: &[(&str, &str, &str)] = &[
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/usr/libexec", "postgresql", ""),
    ("/usr/local", "pgsql", "bin"),
    ("/opt/homebrew/opt", "postgresql", "bin"),
    ("/usr/local/opt", "postgresql", "bin"),
];

/// The directory of the server's programs.
pub(super) fn find() -> Result<PathBuf> {
    if let Some(named) = env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        let directory = PathBuf::from(named);
        if !complete(&directory) {
            bail!(
                "{VARIABLE} names {}, which does not contain initdb and postgres",
                directory.display()
            );
        }
        return Ok(directory);
    }
    let found = on_path(&env::var_os("PATH").unwrap_or_default())
        .or_else(by_pg_config)
        .or_else(in_usual_directories);
    let Some(directory) = found else {
        bail!(
            "found no PostgreSQL server programs (initdb, postgres): install them, for example with \
             `apt-get install postgresql`, `dnf install postgresql-server` or `brew install postgresql`, \
             or set {VARIABLE} to their directory"
        );
    };
    Ok(directory)
}

/// A program on PATH may be a link; the others are in the directory that it points to.
fn on_path(path: &OsStr) -> Option<PathBuf> {
    env::split_paths(path)
        .filter_map(|directory| fs::canonicalize(directory.join("postgres")).ok())
        .filter_map(|program| program.parent().map(Path::to_owned))
        .find(|directory| complete(directory))
}

fn by_pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config")
        .arg("--bindir")
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let directory = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    complete(&directory).then_some(directory)
}

fn in_usual_directories() -> Option<PathBuf> {
    usual_directories().find(|directory| complete(directory))
}

/// The directories of packages that are installed, newest version first.
fn usual_directories() -> impl Iterator<Item = PathBuf> {
    USUAL.iter().flat_map(|(parent, beginning, rest)| {
        let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(parent)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(beginning))
            .map(|entry| (version(&entry.file_name()), entry.path().join(rest)))
            .collect();
        versions.sort();
        versions.into_iter().rev().map(|(_, directory)| directory)
    })
}

/// A client program that works with a server of this major version: beside the server, or any on
/// this machine that is not older, because client programs refuse newer servers.
pub(super) fn find_client(name: &str, server: &Path, major: u32) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    std::iter::once(server.to_owned())
        .chain(usual_directories())
        .chain(env::split_paths(&path))
        .map(|directory| directory.join(name))
        .find(|program| client_version(program).is_some_and(|version| version >= major))
}

/// The major version of a client program, which prints `pg_dump (PostgreSQL) 15.8`.
fn client_version(program: &Path) -> Option<u32> {
    let output = Command::new(program)
        .arg("--version")
        .stderr(Stdio::null())
        .output()
        .ok()?;
    Some(version(OsStr::new(&*String::from_utf8_lossy(
        &output.stdout,
    ))))
}

/// The number in a name such as `15`, `pgsql-16` or `postgresql@17`; 0 without one.
fn version(name: &OsStr) -> u32 {
    let name = name.to_string_lossy();
    let digits: String = name
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().unwrap_or_default()
}

fn complete(directory: &Path) -> bool {
    directory.is_absolute()
        && ["initdb", "postgres"]
            .iter()
            .all(|program| directory.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let names = ["9.6", "10", "pgsql-16", "postgresql@17", "postgresql"];
        let versions: Vec<u32> = names.iter().map(|name| version(OsStr::new(name))).collect();
        assert_eq!(versions, [9, 10, 16, 17, 0]);
    }

    #[test]
    fn a_client_program_is_not_older_than_its_server() {
        let server = tempfile::tempdir().expect("a temporary directory");
        let program = server.path().join("pg_example");
        let script = "#!/bin/sh\necho 'pg_example (PostgreSQL) 16.4 (Debian 16.4-1)'\n";
        fs::write(&program, script).expect("a fresh file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&program, mode).expect("the file is ours");
        let found = |major| find_client("pg_example", server.path(), major);
        assert_eq!(found(12), Some(program.clone()));
        assert_eq!(found(16), Some(program.clone()));
        assert_eq!(found(17), None);
    }

    #[test]
    fn a_link_on_the_path_leads_to_the_directory_of_all_programs() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let (bin, links) = (root.path().join("bin"), root.path().join("links"));
        for directory in [&bin, &links] {
            fs::create_dir(directory).expect("a fresh directory");
        }
        for program in ["initdb", "postgres"] {
            fs::write(bin.join(program), "").expect("a fresh file");
        }
        std::os::unix::fs::symlink(bin.join("postgres"), links.join("postgres"))
            .expect("a fresh link");
        let expected = fs::canonicalize(&bin).expect("it exists");
        assert_eq!(on_path(links.as_os_str()), Some(expected));
        assert_eq!(on_path(root.path().as_os_str()), None);
    }
}
