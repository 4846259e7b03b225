//! The links of the documents: every file and every heading that one points to exists.

use std::path::{Path, PathBuf};

use super::{documents, path, text};

/// The anchors of a document, as GitHub derives them from headings.
fn anchors(document: &str) -> Vec<String> {
    let mut fence = false;
    let mut found = Vec::new();
    for line in document.lines() {
        fence ^= line.starts_with("```");
        if fence || !line.starts_with('#') {
            continue;
        }
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        found.push(kept.collect::<String>().replace(' ', "-"));
    }
    found
}

/// Resolves a link relative to its document.
fn target(document: &str, link: &str) -> PathBuf {
    let directory = Path::new(document).parent().unwrap_or(Path::new(""));
    let mut resolved = PathBuf::new();
    for part in directory.join(link).components() {
        match part {
            std::path::Component::ParentDir => {
                resolved.pop();
            }
            other => resolved.push(other),
        }
    }
    resolved
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut count = 0;
    for document in documents() {
        let content = text(&document);
        for rest in content.split("](").skip(1) {
            let link = rest.split(')').next().expect("a link is closed");
            if link.starts_with("https://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let file = if file.is_empty() {
                PathBuf::from(&document)
            } else {
                target(&document, file)
            };
            let name = file.to_string_lossy();
            assert!(path(&name).exists(), "{document}: {link}");
            if !anchor.is_empty() {
                let known = anchors(&text(&name));
                assert!(
                    known.iter().any(|known| known == anchor),
                    "{document}: {link}"
                );
            }
            count += 1;
        }
    }
    assert!(count > 50, "{count}");
}

#[test]
fn every_source_file_that_a_document_names_exists() {
    for document in documents() {
        let content = text(&document);
        for span in content.split('`').skip(1).step_by(2) {
            let is_path = [
                "src/",
                "migrations/",
                "deploy/",
                "crates/",
                "docs/",
                "tests/",
                "benches/",
            ]
            .iter()
            .any(|start| span.starts_with(start));
            if is_path && !span.contains(['*', '{', '<', ' ']) && !span.contains("NNNN") {
                assert!(path(span).exists(), "{document}: {span}");
            }
        }
    }
}

#[test]
fn the_readme_fits_on_two_screens() {
    let readme = text("README.md");
    assert!(readme.lines().count() <= 120, "{}", readme.lines().count());
    for line in readme.lines() {
        let is_prose = !line.starts_with('|') && !line.contains("](");
        assert!(!is_prose || line.chars().count() <= 100, "{line}");
    }
}
