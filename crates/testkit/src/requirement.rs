//! What a test needs that not every supported server or machine has.
//!
//! Owns the report that a test, or a part of it, was left out: one line on standard error that
//! libtest does not capture, so that it appears for tests that pass too. `.ci/test-versions` counts
//! these lines. Called by tests before they need the feature.

use std::io::Write as _;

use crate::database::shared;

/// Reports that the current test, or a part of it, is left out.
///
/// # Panics
/// If standard error is closed.
pub fn left_out(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // Not `eprintln!`, whose output is shown for failed tests only.
    let written = writeln!(std::io::stderr(), "left out: {test}: {reason}");
    written.expect("standard error is open");
}

/// Whether the shared server has this major version or a later one; reports what is left out if
/// not. `feature` is what the older servers lack.
pub async fn server_since(major: u32, feature: &str) -> bool {
    let met = shared().await.major() >= major;
    if !met {
        left_out(&format!("needs PostgreSQL {major} or later: {feature}"));
    }
    met
}
