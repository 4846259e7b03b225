//! `--version`, and the script that records what it prints.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use status_indexer::version;
use testkit::product;
use testkit::requirement::left_out;

use crate::docs::path;

#[tokio::test]
async fn the_short_form_is_the_version_and_the_long_one_says_what_was_built() {
    let print = async |flag: &str| {
        let output = product::command().arg(flag).output().await;
        let output = output.expect("the binary was built with the tests");
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).expect("a text")
    };
    let first = format!("status-indexer {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(print("-V").await, format!("{first}\n"));
    let text = print("--version").await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], first);
    let names = ["commit:", "commit date:", "target:", "rustc:"];
    assert_eq!(lines.len(), 1 + names.len(), "{text}");
    for (line, name) in lines[1..].iter().zip(names) {
        let value = line.strip_prefix(name).expect("the names are in order");
        assert!(!value.trim().is_empty(), "{text}");
    }
    assert!(text.contains(version::COMMIT), "{text}");
    assert!(lines[3].contains("-"), "{text}");
}

/// A package with the project's own build script, whose program prints what the script recorded.
struct Package {
    directory: tempfile::TempDir,
}

const MAIN: &str = r#"fn main() {
    println!(
        "{} {}",
        env!("STATUS_INDEXER_BUILD_COMMIT"),
        env!("STATUS_INDEXER_BUILD_COMMIT_DATE"),
    );
}
"#;

const MANIFEST: &str = "\
[package]
name = \"versioned\"
version = \"1.2.3\"
edition = \"2024\"
[workspace]
";

impl Package {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self::write(directory.path());
        Self { directory }
    }

    fn write(root: &Path) {
        fs::create_dir_all(root.join("src")).expect("it is ours");
        fs::write(root.join("Cargo.toml"), MANIFEST).expect("it is ours");
        fs::write(root.join("src/main.rs"), MAIN).expect("it is ours");
        fs::write(root.join(".gitignore"), "/target\n").expect("it is ours");
        fs::copy(path("build.rs"), root.join("build.rs")).expect("the project has one");
    }

    fn root(&self) -> &Path {
        self.directory.path()
    }
}

/// Builds the package in `root` and runs it: what it prints, and whether anything was built.
fn build(root: &Path, env: &[(&str, &str)]) -> (String, bool) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--offline", "--verbose"]);
    command
        .current_dir(root)
        .env("CARGO_TARGET_DIR", root.join("target"));
    for name in ["STATUS_INDEXER_COMMIT", "SOURCE_DATE_EPOCH", "RUSTFLAGS"] {
        command.env_remove(name);
    }
    let output = command
        .envs(env.iter().copied())
        .output()
        .expect("cargo runs this test");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    let program = Command::new(root.join("target/debug/versioned")).output();
    let printed = program.expect("it was built").stdout;
    let printed = String::from_utf8_lossy(&printed).trim().to_owned();
    (printed, !log.contains("Fresh versioned"))
}

fn git(root: &Path, args: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=x", "-c", "user.email=x@localhost"]);
    let output: Output = command
        .args(args)
        .current_dir(root)
        .env("GIT_COMMITTER_DATE", "2024-02-29T12:00:00Z")
        .output()
        .ok()?;
    assert!(output.status.success(), "{args:?}: {output:?}");
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn commit(root: &Path, message: &str) -> String {
    git(root, &["add", "."]);
    git(
        root,
        &["commit", "-q", "--allow-empty", "--message", message],
    );
    git(root, &["rev-parse", "HEAD"]).expect("git has run")
}

#[test]
fn the_commit_is_that_of_head_and_a_build_follows_head_only() {
    let package = Package::new();
    let root = package.root();
    if git(root, &["init", "-q"]).is_none() {
        left_out("needs git");
        return;
    }
    let first = commit(root, "first");
    assert_eq!(build(root, &[]), (format!("{first} 2024-02-29"), true));
    assert_eq!(build(root, &[]), (format!("{first} 2024-02-29"), false));
    // A file that is not part of the package.
    fs::write(root.join("README.md"), "x").expect("it is ours");
    git(root, &["add", "."]);
    assert!(!build(root, &[]).1, "nothing that matters has changed");
    let second = commit(root, "second");
    assert_eq!(build(root, &[]), (format!("{second} 2024-02-29"), true));
    assert!(!build(root, &[]).1);

    // A worktree has its own HEAD, and a file `.git` instead of the directory.
    let tree = tempfile::tempdir().expect("a temporary directory");
    let tree = tree.path().join("tree");
    git(
        root,
        &["worktree", "add", "-q", &tree.display().to_string(), "HEAD"],
    );
    assert_eq!(build(&tree, &[]).0, format!("{second} 2024-02-29"));
    let third = commit(&tree, "third");
    assert_eq!(build(&tree, &[]), (format!("{third} 2024-02-29"), true));
    assert!(
        !build(root, &[]).1,
        "the worktree's commits do not matter here"
    );

    // Without the log of HEAD.
    git(root, &["config", "core.logAllRefUpdates", "false"]);
    fs::remove_file(root.join(".git/logs/HEAD")).expect("git wrote it");
    build(root, &[]);
    let fourth = commit(root, "fourth");
    assert_eq!(build(root, &[]), (format!("{fourth} 2024-02-29"), true));
}

#[test]
fn without_a_repository_the_variables_say_it_or_it_is_unknown() {
    let package = Package::new();
    let root = package.root();
    assert_eq!(build(root, &[]), ("unknown unknown".to_owned(), true));
    assert!(!build(root, &[]).1);
    let stated = [
        ("STATUS_INDEXER_COMMIT", "0123abc"),
        ("SOURCE_DATE_EPOCH", "1709164800"),
    ];
    assert_eq!(
        build(root, &stated),
        ("0123abc 2024-02-29".to_owned(), true)
    );
    assert!(!build(root, &stated).1);
    for (epoch, day) in [
        ("0", "1970-01-01"),
        ("951782400", "2000-02-29"),
        ("1735689599", "2024-12-31"),
        ("x", "unknown"),
        ("", "unknown"),
    ] {
        let env = [("STATUS_INDEXER_COMMIT", ""), ("SOURCE_DATE_EPOCH", epoch)];
        assert_eq!(build(root, &env).0, format!("unknown {day}"), "{epoch}");
    }

    // Unpacked within the repository of another project, whose commit is not ours.
    let other = tempfile::tempdir().expect("a temporary directory");
    if git(other.path(), &["init", "-q"]).is_none() {
        left_out("needs git");
        return;
    }
    let inner = other.path().join("vendor");
    Package::write(&inner);
    commit(other.path(), "theirs");
    assert_eq!(build(&inner, &[]).0, "unknown unknown");
}
