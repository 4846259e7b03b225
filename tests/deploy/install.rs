//! `make install` and `make uninstall`, into a directory of the test's own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use testkit::product;
use testkit::requirement::left_out;

use crate::docs::path;

/// Runs a target of the Makefile with the binary of the tests; false without make.
fn make(target: &str, variables: &[String]) -> bool {
    let binary = format!("BINARY={}", product::path().display());
    let output = Command::new("make")
        .arg(target)
        .arg(binary)
        .args(variables)
        .current_dir(path(""))
        .output();
    let Ok(output) = output else {
        left_out("needs make");
        return false;
    };
    assert!(output.status.success(), "{output:?}");
    true
}

/// Every file below a directory, with its permissions.
fn files(root: &Path) -> BTreeSet<(String, u32)> {
    let mut found = BTreeSet::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("it can be listed") {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let mode = fs::metadata(&path).expect("it exists").permissions().mode();
            let name = path.strip_prefix(root).expect("it is below").display();
            found.insert((name.to_string(), mode & 0o777));
        }
    }
    found
}

#[test]
fn install_puts_every_file_in_its_standard_place_and_uninstall_removes_it() {
    for (prefix, below) in [
        (None, "usr/local"),
        (Some("/opt/with space"), "opt/with space"),
    ] {
        let root = tempfile::tempdir().expect("a temporary directory");
        let mut variables = vec![format!("DESTDIR={}", root.path().display())];
        variables.extend(prefix.map(|prefix| format!("PREFIX={prefix}")));
        if !make("install", &variables) {
            return;
        }
        let installed = files(root.path());
        let mut expected: BTreeSet<(String, u32)> = [
            ("bin/status-indexer", 0o755),
            ("share/bash-completion/completions/status-indexer", 0o644),
            ("share/zsh/site-functions/_status-indexer", 0o644),
            ("share/fish/vendor_completions.d/status-indexer.fish", 0o644),
            ("share/man/man1/status-indexer.1", 0o644),
        ]
        .map(|(name, mode)| (format!("{below}/{name}"), mode))
        .into();
        for command in [
            "backfill",
            "completions",
            "doctor",
            "explain",
            "man",
            "migrate",
            "migrate-down",
            "migrate-status",
            "migrate-up",
            "run",
            "verify",
        ] {
            let page = format!("{below}/share/man/man1/status-indexer-{command}.1");
            expected.insert((page, 0o644));
        }
        assert_eq!(installed, expected);
        let binary = root.path().join(below).join("bin/status-indexer");
        let output = Command::new(binary)
            .arg("-V")
            .output()
            .expect("it is executable");
        assert!(output.status.success());

        // Again, over what is there; then a file of somebody else stays.
        assert!(make("install", &variables));
        assert_eq!(files(root.path()), installed);
        let others = root.path().join(below).join("bin/other");
        fs::write(&others, "").expect("it is ours");
        for _ in 0..2 {
            assert!(make("uninstall", &variables));
            let left: Vec<_> = files(root.path()).into_iter().map(|file| file.0).collect();
            assert_eq!(left, [format!("{below}/bin/other")]);
        }
    }
}
