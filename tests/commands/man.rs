//! The manual pages and the completions, read by the programs that read them at a site.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use clap::CommandFactory as _;
use status_indexer::cli::Cli;
use testkit::product;
use testkit::requirement::left_out;

use crate::docs::flags;

/// Runs the binary; its output.
async fn run(args: &[&str]) -> Output {
    let output = product::command().args(args).output().await;
    output.expect("the binary was built with the tests")
}

/// Runs a program that a machine may lack; its output, and what it wrote to standard error.
fn program(name: &str, args: &[&str], stdin: Stdio) -> Option<(Output, String)> {
    let output = Command::new(name).args(args).stdin(stdin).output();
    let Ok(output) = output else {
        left_out(&format!("needs {name}"));
        return None;
    };
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Some((output, errors))
}

/// Every command, by its page.
fn commands() -> Vec<(String, clap::Command)> {
    fn collect(command: &clap::Command, name: &str, found: &mut Vec<(String, clap::Command)>) {
        found.push((name.to_owned(), command.clone()));
        for sub in command.get_subcommands() {
            if sub.get_name() != "help" {
                collect(sub, &format!("{name}-{}", sub.get_name()), found);
            }
        }
    }
    let mut cli = Cli::command();
    cli.build();
    let mut found = Vec::new();
    collect(&cli, "status-indexer", &mut found);
    found
}

#[tokio::test]
async fn there_is_a_page_for_each_command_with_each_of_its_flags() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().to_str().expect("a path of ASCII");
    assert!(run(&["man", path]).await.status.success());
    let commands = commands();
    assert!(commands.len() > 10);
    let written = std::fs::read_dir(directory.path())
        .expect("it exists")
        .count();
    assert_eq!(written, commands.len());
    for (name, command) in &commands {
        let page = directory.path().join(format!("{name}.1"));
        let page = std::fs::read_to_string(&page).expect("it was written");
        let page = page.replace("\\-", "-");
        let own = command.get_arguments().filter_map(clap::Arg::get_long);
        for flag in own {
            assert!(
                page.contains(&format!("\\fB--{flag}\\fR")),
                "{name} --{flag}"
            );
        }
        for flag in flags(command) {
            let is_own = command
                .get_arguments()
                .any(|arg| arg.get_id() == flag.get_id());
            if let Some(variable) = flag.get_env().filter(|_| is_own) {
                assert!(
                    page.contains(&*variable.to_string_lossy()),
                    "{name} {variable:?}"
                );
            }
        }
        assert!(page.contains("EXIT STATUS"), "{name}");
        check(&directory.path().join(format!("{name}.1")));
    }
    let output = run(&["man"]).await;
    let first = directory.path().join("status-indexer.1");
    let first = std::fs::read(first).expect("it was written");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim_end(),
        String::from_utf8_lossy(&first).trim_end()
    );
}

/// Checks that the formatters of both kinds of systems read a page without a complaint.
fn check(page: &Path) {
    let path = page.to_str().expect("a path of ASCII");
    if let Some((output, errors)) = program(
        "groff",
        &["-man", "-Tutf8", "-ww", "-z", path],
        Stdio::null(),
    ) {
        assert!(
            output.status.success() && errors.is_empty(),
            "{path}: {errors}"
        );
    }
    let args = ["--warnings", "--local-file", path];
    if let Some((output, errors)) = program("man", &args, Stdio::null()) {
        assert!(
            output.status.success() && errors.is_empty(),
            "{path}: {errors}"
        );
    }
    if let Some((output, _)) = program("mandoc", &["-Tlint", "-Wwarning", path], Stdio::null()) {
        // The generator puts a line break beside a change of the indentation.
        let complaints = String::from_utf8_lossy(&output.stdout).into_owned();
        let real: Vec<&str> = complaints
            .lines()
            .filter(|line| !line.contains("skipping paragraph macro: br"))
            .collect();
        assert!(real.is_empty(), "{real:#?}");
    }
}

#[tokio::test]
async fn a_directory_that_does_not_exist_is_named() {
    let output = run(&["man", "/nosuch/directory"]).await;
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("/nosuch/directory"), "{errors}");
}

/// Writes the script of a shell to a file.
async fn script(shell: &str, directory: &Path) -> String {
    let output = run(&["completions", shell]).await;
    assert!(output.status.success(), "{output:?}");
    let path = directory.join(shell);
    std::fs::write(&path, output.stdout).expect("it is ours");
    path.to_str().expect("a path of ASCII").to_owned()
}

#[tokio::test]
async fn bash_completes_commands_flags_and_values() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = script("bash", directory.path()).await;
    for (line, expected) in [
        ("status-indexer doc", "doctor"),
        ("status-indexer migrate st", "status"),
        ("status-indexer doctor --max-tr", "--max-transaction-age"),
        ("status-indexer run --reconcile-r", "--reconcile-rate"),
        ("status-indexer run --session-mode tr", "transaction"),
        ("status-indexer completions z", "zsh"),
    ] {
        // As bash calls the function when somebody presses the tab key.
        let load = format!(
            ". '{path}'; COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=($COMP_LINE); \
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             spec=$(complete -p status-indexer); function=${{spec##*-F }}; function=${{function%% *}}; \
             $function status-indexer \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let args = ["--norc", "--noprofile", "-c", &load];
        let Some((output, errors)) = program("bash", &args, Stdio::null()) else {
            return;
        };
        let offered = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            offered.lines().any(|word| word == expected),
            "{line}: {offered} {errors}"
        );
    }
}

#[tokio::test]
async fn zsh_and_fish_read_their_scripts() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (shell, args) in [("zsh", &["-n"][..]), ("fish", &["--no-execute"])] {
        let path = script(shell, directory.path()).await;
        let args: Vec<&str> = args.iter().copied().chain([path.as_str()]).collect();
        let Some((output, errors)) = program(shell, &args, Stdio::null()) else {
            continue;
        };
        assert!(
            output.status.success() && errors.is_empty(),
            "{shell}: {errors}"
        );
    }
    // Fish completes without a terminal.
    let path = script("fish", directory.path()).await;
    let complete =
        format!("source '{path}'; complete --do-complete 'status-indexer doctor --max-tr'");
    if let Some((output, errors)) =
        program("fish", &["--no-config", "-c", &complete], Stdio::null())
    {
        let offered = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            offered.contains("--max-transaction-age"),
            "{offered} {errors}"
        );
    }
}

#[tokio::test]
async fn a_shell_that_is_not_supported_exits_64() {
    let output = run(&["completions", "cmd"]).await;
    assert_eq!(output.status.code(), Some(64));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("bash") && errors.contains("fish"),
        "{errors}"
    );
}
