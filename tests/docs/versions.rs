//! The supported versions of PostgreSQL: one range in the code, the scripts and the documents.

use status_indexer::migrate::{NEWEST_TESTED_SERVER, OLDEST_SERVER};

use super::text;

#[test]
fn the_supported_versions_are_those_that_are_tested() {
    let (oldest, newest) = (OLDEST_SERVER, NEWEST_TESTED_SERVER);
    let matrix: Vec<String> = (oldest..=newest).map(|major| major.to_string()).collect();
    let promise = format!("PostgreSQL {oldest} to {newest}");
    let expected = [
        (
            ".ci/postgres-versions",
            format!("VERSIONS = range({oldest}, {})\n", newest + 1),
        ),
        (
            ".github/workflows/ci.yml",
            format!("postgresql: [{}]\n", matrix.join(", ")),
        ),
        ("README.md", promise.clone()),
        ("docs/operations.md", promise),
        ("CONTRIBUTING.md", format!("tested, {oldest} to {newest}:")),
    ];
    for (name, words) in expected {
        assert!(text(name).contains(&words), "{name} lacks {words:?}");
    }
}
