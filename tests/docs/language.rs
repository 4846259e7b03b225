//! The language of the project: one word for each concept, and only words that a reader knows.
//!
//! Owns the list of words that may not occur in code, help, logs, documents and deployment files,
//! each with the word to use instead. Names and comments count too, because they often become
//! texts.

use std::path::Path;

use super::{path, text};

/// The beginning of a word, or a phrase, and what to write.
const WORDS: &[(&str, &str)] = &[
    ("believ", "valid"),
    ("disbeliev", "invalidate"),
    ("first pass", "backfill"),
    ("steady pass", "reconciliation pass"),
    ("walk", "scan"),
    ("judg", "evaluate"),
    ("alarm", "deadline"),
    ("quiet", "polling mode, notifications suppressed"),
    ("comes by itself", "polls"),
    ("adrift", "drift"),
    ("in flight", "pending"),
    ("step aside", "isolate, requeue"),
    ("postpone", "requeue"),
    ("patience", "limit, or admission"),
    ("ledger", "oracle"),
    ("befall", "fault"),
    ("to be had", "available"),
    // As in "a value that is no boolean"; "there is no run" is standard.
    ("is no ", "is not a"),
    ("told", "the plain verb"),
    ("tells", "the plain verb"),
];

/// Files with a sentence that needs one of the words.
const EXCEPTIONS: &[(&str, &str)] = &[
    // This list.
    ("tests/docs/language.rs", ""),
    // An option of a command-line tool, and a function of Python.
    ("Makefile", "quiet"),
    (".ci/unused-dependencies", "walk"),
];

/// Every text file of the repository, by its path.
fn files() -> Vec<String> {
    let mut found = Vec::new();
    for top in [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "Cargo.toml",
        "Makefile",
        "src",
        "migrations",
        "deploy",
        "docs",
        "crates",
        "benches",
        "tests",
        ".ci",
    ] {
        collect(&path(top), top, &mut found);
    }
    assert!(found.len() > 150, "{}", found.len());
    found
}

fn collect(place: &Path, name: &str, found: &mut Vec<String>) {
    if place.is_file() {
        found.push(name.to_owned());
        return;
    }
    for entry in std::fs::read_dir(place).unwrap_or_else(|error| panic!("{name}: {error}")) {
        let entry = entry.expect("the directory can be listed");
        let child = entry.file_name().to_string_lossy().into_owned();
        if child != "__pycache__" {
            collect(&entry.path(), &format!("{name}/{child}"), found);
        }
    }
}

/// Whether a line contains the word at the beginning of a word.
fn contains(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric())
    })
}

#[test]
fn every_text_uses_the_words_of_the_field() {
    let mut found = Vec::new();
    for file in files() {
        for (number, line) in text(&file).lines().enumerate() {
            let lower = line.to_lowercase().replace("there is no ", "");
            for (word, instead) in WORDS {
                let excepted = EXCEPTIONS
                    .iter()
                    .any(|(name, only)| *name == file && (only.is_empty() || only == word));
                if contains(&lower, word) && !excepted {
                    found.push(format!(
                        "{file}:{}: {word:?}: write {instead:?}: {}",
                        number + 1,
                        line.trim()
                    ));
                }
            }
        }
    }
    assert!(
        found.is_empty(),
        "{} lines\n{}",
        found.len(),
        found.join("\n")
    );
}

#[test]
fn a_word_counts_only_at_the_beginning_of_a_word() {
    assert!(contains("the walk", "walk") && contains("a_walk", "walk"));
    assert!(!contains("sidewalk", "walk"));
}
