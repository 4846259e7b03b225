//! Records from which commit, for which target and by which compiler the binary is built.
//!
//! `STATUS_INDEXER_COMMIT` and `SOURCE_DATE_EPOCH` (seconds since 1970) state the commit and its date
//! where the sources have no repository, as in an archive or an image; they take precedence. What cannot
//! be known is `unknown`: a build never fails for it. Cargo runs this again only when one of the
//! variables or the repository's HEAD changes.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const COMMIT: &str = "STATUS_INDEXER_COMMIT";
const DATE: &str = "SOURCE_DATE_EPOCH";
const UNKNOWN: &str = "unknown";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={COMMIT}");
    println!("cargo::rerun-if-env-changed={DATE}");
    let repository = Repository::of_this_package();
    if let Some(repository) = &repository {
        repository.watch_head();
    }
    let in_repository = |format| repository.as_ref().and_then(|it| it.of_head(format));
    let commit = variable(COMMIT).or_else(|| in_repository("%H"));
    let date = variable(DATE).or_else(|| in_repository("%ct"));
    record("COMMIT", commit);
    record("COMMIT_DATE", date.and_then(|secs| day(secs.parse().ok()?)));
    record("TARGET", variable("TARGET"));
    record("RUSTC", rustc());
}

/// A variable of the environment that is set and not empty. Whatever has white space would break the
/// text of `--version`.
fn variable(name: &str) -> Option<String> {
    let value = env::var(name).ok()?;
    let usable = !value.is_empty() && !value.contains(char::is_whitespace);
    if !usable && !value.is_empty() {
        println!("cargo::warning={name} contains white space and is ignored");
    }
    usable.then_some(value)
}

/// Passes a fact to the code, which reads it by `env!`.
fn record(name: &str, value: Option<String>) {
    let value = value.unwrap_or_else(|| UNKNOWN.to_owned());
    println!("cargo::rustc-env=STATUS_INDEXER_BUILD_{name}={value}");
}

/// The version of the compiler, without the name of the program.
fn rustc() -> Option<String> {
    let output = Command::new(env::var_os("RUSTC")?)
        .arg("--version")
        .output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    Some(text.trim().trim_start_matches("rustc ").to_owned())
}

/// The checkout in which this package is the root.
struct Repository {
    root: PathBuf,
}

impl Repository {
    /// None without git, and where the sources were unpacked within the repository of another project.
    fn of_this_package() -> Option<Self> {
        let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?);
        let repository = Self { root };
        let top = repository.git(&["rev-parse", "--show-toplevel"])?;
        let is_root =
            Path::new(&top).canonicalize().ok()? == repository.root.canonicalize().ok()?;
        is_root.then_some(repository)
    }

    fn of_head(&self, format: &str) -> Option<String> {
        self.git(&["show", "--no-patch", &format!("--format={format}"), "HEAD"])
    }

    /// Git's log of HEAD changes with each commit, checkout and reset. It is a file of the worktree's
    /// own, so other worktrees do not matter. Where logs are off: HEAD, and all branches.
    fn watch_head(&self) {
        let head = self.existing("HEAD");
        let log = self.existing("logs/HEAD");
        let branches = if log.is_none() {
            [self.existing("refs"), self.existing("packed-refs")]
        } else {
            [None, None]
        };
        for path in [head, log].into_iter().chain(branches).flatten() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }

    /// A file of the repository. Cargo would run this script in each build for one that does not exist.
    fn existing(&self, name: &str) -> Option<PathBuf> {
        let path = self
            .root
            .join(self.git(&["rev-parse", "--git-path", name])?);
        path.exists().then_some(path)
    }

    fn git(&self, args: &[&str]) -> Option<String> {
        let mut git = Command::new("git");
        // Set by git itself for its hooks, and would name another repository.
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            git.env_remove(name);
        }
        let output = git.args(args).current_dir(&self.root).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let text = text.trim();
        (output.status.success() && !text.is_empty()).then(|| text.to_owned())
    }
}

/// The day of a time in seconds since 1970, in UTC, as `2026-01-31`.
fn day(secs: u64) -> Option<String> {
    let mut days = secs / 86_400;
    let mut year = 1970;
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        if year == 9999 {
            return None;
        }
        days -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    Some(format!("{year:04}-{month:02}-{:02}", days + 1))
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}
