//! The version of the binary, and from what it was built.
//!
//! `build.rs` determines the facts. Used by `--version`, the start of the daemon, the metrics and
//! `doctor`, so that all of them say the same.

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit, as a full hash; `unknown` if it was built outside of a repository.
pub const COMMIT: &str = env!("STATUS_INDEXER_BUILD_COMMIT");

const COMMIT_DATE: &str = env!("STATUS_INDEXER_BUILD_COMMIT_DATE");

/// The day of the commit, in UTC, where it is known.
#[must_use]
pub fn commit_date() -> Option<&'static str> {
    (COMMIT_DATE != "unknown").then_some(COMMIT_DATE)
}

/// What `--version` prints after the name.
pub const LONG: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit:      ",
    env!("STATUS_INDEXER_BUILD_COMMIT"),
    "\ncommit date: ",
    env!("STATUS_INDEXER_BUILD_COMMIT_DATE"),
    "\ntarget:      ",
    env!("STATUS_INDEXER_BUILD_TARGET"),
    "\nrustc:       ",
    env!("STATUS_INDEXER_BUILD_RUSTC"),
);
