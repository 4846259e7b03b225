//! Finds PostgreSQL's server programs on this machine.
//!
//! Owns the order of the search: `STATUS_INDEXER_PG_BIN`, then PATH, then `pg_config`, then the
//! directories that packages use, newest version first. Promises a directory with both `initdb` and
//! `postgres`, or an error that says what to install. `.ci/setup` searches in the same order.

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
    USUAL.iter().find_map(|(parent, beginning, rest)| {
        let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(parent)
            .ok()?
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(beginning))
            .map(|entry| (version(&entry.file_name()), entry.path().join(rest)))
            .filter(|(_, directory)| complete(directory))
            .collect();
        versions.sort();
        versions.pop().map(|(_, directory)| directory)
    })
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
