//! The unit of `deploy/systemd`, its drop-in and its settings, against systemd and against the binary.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Output};

use clap::CommandFactory as _;
use status_indexer::cli::Cli;
use status_indexer::exit::Exit;
use tempfile::TempDir;

use crate::docs::{flags, path, text};
use testkit::requirement::left_out;

const UNIT: &str = "deploy/systemd/status-indexer.service";
const DROP_IN: &str = "deploy/systemd/password.conf";
const ENVIRONMENT: &str = "deploy/systemd/environment";

/// The most that systemd may find exposed, in tenths; 100 is a service without any restriction.
const THRESHOLD: &str = "--threshold=15";

/// The unit as it is installed, but with the binary under test.
struct Installed {
    directory: TempDir,
}

impl Installed {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory of our own");
        let binary = testkit::product::path();
        let unit = text(UNIT).replace("/usr/bin/status-indexer", &binary.to_string_lossy());
        let place = directory.path().join("status-indexer.service");
        std::fs::write(&place, unit).expect("the directory is ours");
        let drop_ins = directory.path().join("status-indexer.service.d");
        std::fs::create_dir(&drop_ins).expect("the directory is ours");
        std::fs::copy(path(DROP_IN), drop_ins.join("password.conf")).expect("it can be copied");
        Self { directory }
    }

    fn unit(&self) -> std::path::PathBuf {
        self.directory.path().join("status-indexer.service")
    }
}

/// Runs systemd-analyze on a unit, if this machine has one that can check files.
fn analyze(args: &[&str], unit: &Path) -> Option<Output> {
    let version = Command::new("systemd-analyze").arg("--version").output();
    let major = version.ok().and_then(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace().nth(1)?.parse::<u32>().ok()
    });
    if major.is_none_or(|major| major < 250) {
        left_out("needs systemd-analyze 250 or later");
        return None;
    }
    let output = Command::new("systemd-analyze")
        .args(args)
        .arg(unit)
        .output();
    Some(output.expect("it was there a moment ago"))
}

fn printed(output: &Output) -> String {
    let both = [&*output.stdout, &*output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// The values of a setting of the unit.
fn values(unit: &str, name: &str) -> Vec<String> {
    let lines = unit.lines();
    lines
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        .map(str::to_owned)
        .collect()
}

/// The flag of each variable of the binary, and whether it takes a value.
fn variables() -> HashMap<String, (String, bool)> {
    let cli = Cli::command();
    let named = flags(&cli).into_iter().filter_map(|arg| {
        let variable = arg.get_env()?.to_string_lossy().into_owned();
        let flag = format!("--{}", arg.get_long()?);
        Some((variable, (flag, arg.get_action().takes_values())))
    });
    named.collect()
}

/// Whether `run` takes these arguments.
fn accepts(args: &[&str]) -> Result<(), clap::Error> {
    let command = Cli::command().mut_args(|arg| arg.env(None::<&str>));
    let all = std::iter::once("status-indexer").chain(args.iter().copied());
    command.try_get_matches_from(all).map(drop)
}

#[test]
fn systemd_accepts_the_unit_and_its_drop_in() {
    let installed = Installed::new();
    // The manual page is not installed here.
    let Some(output) = analyze(&["verify", "--man=no"], &installed.unit()) else {
        return;
    };
    // Of an unknown setting it only warns.
    assert!(output.status.success(), "{}", printed(&output));
    assert_eq!(printed(&output), "");
}

#[test]
fn systemd_finds_little_exposed() {
    let installed = Installed::new();
    let args = ["security", "--offline=true", "--no-pager", THRESHOLD];
    if let Some(output) = analyze(&args, &installed.unit()) {
        assert!(output.status.success(), "{}", printed(&output));
    }
}

#[test]
fn the_unit_starts_and_stops_the_daemon_as_it_expects() {
    let unit = text(UNIT);
    let [start] = &values(&unit, "ExecStart")[..] else {
        panic!("one command starts the service");
    };
    let args = start.strip_prefix("/usr/bin/status-indexer ");
    let args: Vec<_> = args.expect("it is our binary").split(' ').collect();
    accepts(&args).expect("the binary takes the arguments");

    let usage = Exit::Usage.code().to_string();
    assert_eq!(values(&unit, "RestartPreventExitStatus"), [usage]);

    let cli = Cli::command();
    let limit = flags(&cli)
        .into_iter()
        .find(|arg| arg.get_long() == Some("shutdown-timeout"))
        .expect("the daemon limits its end");
    let limit = limit.get_default_values()[0].to_string_lossy().into_owned();
    let limit: u32 = limit.parse().expect("it is a number of seconds");
    let stop: u32 = values(&unit, "TimeoutStopSec")[0]
        .parse()
        .expect("it is a number of seconds");
    assert!(stop > limit, "systemd kills it after {stop} s");
}

#[test]
fn the_settings_of_the_unit_are_variables_of_the_binary() {
    let variables = variables();
    let environment = text(ENVIRONMENT);
    let mut count = 0;
    for line in environment
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
    {
        let Some((name, value)) = line.split_once('=').filter(|(name, _)| !name.contains(' '))
        else {
            continue;
        };
        let (flag, takes_value) = variables.get(name).unwrap_or_else(|| panic!("{name}"));
        if *takes_value && !value.is_empty() {
            accepts(&["run", flag, value]).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        count += 1;
    }
    assert!(count >= 8, "{count}");
    for setting in values(&text(DROP_IN), "Environment") {
        let (name, _) = setting.split_once('=').expect("a setting has a value");
        assert!(variables.contains_key(name), "{name}");
    }
}

/// The file is an example: a new installation connects as without it.
#[test]
fn the_settings_are_all_commented_out() {
    for line in text(ENVIRONMENT).lines() {
        assert!(line.is_empty() || line.starts_with('#'), "{line}");
    }
}
