//! The Debian package of `make deb`, built from the binary under test by cargo-deb.
//!
//! Unpacks the package and runs what is in it; installing it needs a Debian system of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clap::CommandFactory as _;
use status_indexer::cli::Cli;
use tempfile::TempDir;

use super::prometheus::there;
use crate::docs::path;
use testkit::requirement::left_out;

/// A package, and its files below a directory.
struct Package {
    directory: TempDir,
    file: PathBuf,
}

impl Package {
    /// Builds the package; none, with a report, on a machine that lacks cargo-deb.
    fn build() -> Option<Self> {
        if !has_cargo_deb() || !there("dpkg-deb") || !there("strip") {
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory of our own");
        let release = directory.path().join("target/release");
        std::fs::create_dir_all(&release).expect("the directory is ours");
        let binary = release.join("status-indexer");
        let mut strip = Command::new("strip");
        succeed(strip.arg("-o").arg(&binary).arg(testkit::product::path()));
        let target = directory.path().join("target");
        let output = succeed(
            Command::new(path(".ci/deb"))
                .arg("--fast")
                .env("CARGO_TARGET_DIR", &target),
        );
        let printed = text(&output.stdout);
        let file = PathBuf::from(
            printed
                .lines()
                .last()
                .expect("it prints the package's path"),
        );
        let package = Self { directory, file };
        package.unpack();
        Some(package)
    }

    fn unpack(&self) {
        succeed(
            Command::new("dpkg-deb")
                .arg("-x")
                .arg(&self.file)
                .arg(self.root()),
        );
        succeed(
            Command::new("dpkg-deb")
                .arg("-e")
                .arg(&self.file)
                .arg(self.root().join("DEBIAN")),
        );
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn read(&self, name: &str) -> String {
        let file = self.root().join(name);
        std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// A field of the package's description.
    fn field(&self, name: &str) -> String {
        let output = succeed(Command::new("dpkg-deb").arg("-f").arg(&self.file).arg(name));
        text(&output.stdout).trim().to_owned()
    }
}

fn has_cargo_deb() -> bool {
    let found = Command::new("cargo")
        .args(["deb", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        left_out("needs cargo-deb: cargo install cargo-deb --locked");
    }
    found
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("it can be executed");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        text(&output.stderr)
    );
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The mode of a file, without its kind.
fn mode(file: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    let found = file
        .metadata()
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    found.permissions().mode() & 0o777
}

#[test]
fn the_package_is_complete_and_starts_nothing() {
    if let Some(package) = Package::build() {
        has_the_binary_its_unit_and_its_settings(&package);
        has_its_manual_and_examples(&package.root());
        starts_and_enables_nothing(&package);
    }
}

fn has_the_binary_its_unit_and_its_settings(package: &Package) {
    let root = package.root();
    let output = succeed(Command::new(root.join("usr/bin/status-indexer")).arg("--version"));
    let version = env!("CARGO_PKG_VERSION");
    assert!(text(&output.stdout).starts_with(&format!("status-indexer {version}")));
    assert_eq!(package.field("Version"), version);
    assert!(package.field("Depends").contains("libc6"));

    // The unit is the one that is tested, with the path of the binary.
    let unit = package.read("usr/lib/systemd/system/status-indexer.service");
    assert_eq!(
        unit,
        crate::docs::text("deploy/systemd/status-indexer.service")
    );

    let settings = root.join("etc/status-indexer/environment");
    assert_eq!(mode(&settings), 0o600);
    let kept = package.read("DEBIAN/conffiles");
    assert_eq!(kept.trim(), "/etc/status-indexer/environment");
}

fn has_its_manual_and_examples(root: &Path) {
    let manual = root.join("usr/share/man/man1");
    let mut pages = vec!["status-indexer".to_owned()];
    let cli = Cli::command();
    pages.extend(
        cli.get_subcommands()
            .map(|command| format!("status-indexer-{}", command.get_name())),
    );
    for page in pages {
        let file = manual.join(format!("{page}.1.gz"));
        succeed(Command::new("gzip").arg("-t").arg(file));
    }
    for file in [
        "usr/share/bash-completion/completions/status-indexer",
        "usr/share/zsh/vendor-completions/_status-indexer",
        "usr/share/fish/vendor_completions.d/status-indexer.fish",
        "usr/share/doc/status-indexer/copyright",
        "usr/share/doc/status-indexer/changelog.gz",
        "usr/share/doc/status-indexer/docs/operations.md",
        "usr/share/doc/status-indexer/examples/password.conf",
        "usr/share/doc/status-indexer/examples/prometheus/rules.yml",
    ] {
        assert_ne!(
            root.join(file).metadata().map_or(0, |found| found.len()),
            0,
            "{file}"
        );
    }
}

/// The service is not configured yet. An upgrade does not restart it either, because `migrate` comes
/// first.
fn starts_and_enables_nothing(package: &Package) {
    let script = package.read("DEBIAN/postinst");
    for action in ["start", "systemctl enable"] {
        assert!(!script.contains(action), "{action}: {script}");
    }
    // It enables the unit only if an administrator had enabled it before the package was removed.
    let enables = script.find("deb-systemd-helper enable").expect(&script);
    let condition = script
        .find("if deb-systemd-helper debian-installed")
        .expect(&script);
    assert!(condition < enables, "{script}");
}
