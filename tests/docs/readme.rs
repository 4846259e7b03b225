//! The README against the code.

use std::fmt::Write as _;

use clap::CommandFactory as _;
use status_indexer::cli::Cli;
use status_indexer::metrics::Metrics;

use super::{flags, path, text};

fn cli() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    command
}

/// The table of all flags, from clap's definition: flag, variable, default, commands, meaning.
fn configuration() -> String {
    let cli = cli();
    let commands: Vec<_> = cli
        .get_subcommands()
        .filter(|command| command.get_name() != "help")
        .collect();
    let mut rows: Vec<String> = Vec::new();
    let mut seen = Vec::new();
    for arg in flags(&cli)
        .into_iter()
        .chain(commands.iter().flat_map(|c| flags(c)))
    {
        let long = arg.get_long().expect("flags have long names");
        // Flags of the same name may differ between commands.
        let key = row(arg, long, "");
        let same =
            |other: &&clap::Arg| other.get_long() == Some(long) && row(other, long, "") == key;
        let users: Vec<_> = commands
            .iter()
            .filter(|command| flags(command).iter().any(same))
            .map(|command| format!("`{}`", command.get_name()))
            .collect();
        if users.is_empty() || seen.contains(&key) {
            continue;
        }
        seen.push(key);
        let users = if users.len() == commands.len() {
            "all".to_owned()
        } else {
            users.join(", ")
        };
        rows.push(row(arg, long, &users));
    }
    format!(
        "| Flag | Variable | Default | Commands | Meaning |\n|---|---|---|---|---|\n{}\n",
        rows.join("\n")
    )
}

fn row(arg: &clap::Arg, long: &str, users: &str) -> String {
    let help = arg
        .get_help()
        .map(|help| help.to_string().replace('\n', " "))
        .unwrap_or_default();
    // Where a value may come from several sources, clap has no default, and the help states it.
    let (meaning, stated) = match help.split_once(" [default: ") {
        Some((meaning, rest)) => (meaning.to_owned(), rest.trim_end_matches(']').to_owned()),
        None => (help, String::new()),
    };
    let defaults = arg.get_default_values();
    let takes_value = arg.get_action().takes_values();
    let default = match defaults.first() {
        Some(default) if takes_value => default.to_string_lossy().into_owned(),
        _ => stated,
    };
    let mut meaning = meaning;
    let values: Vec<_> = arg
        .get_possible_values()
        .iter()
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if takes_value && !values.is_empty() {
        write!(meaning, ": {}", values.join(", ")).expect("writing to memory does not fail");
    }
    let code = |text: &str| {
        if text.is_empty() {
            String::new()
        } else {
            format!("`{text}`")
        }
    };
    let variable = arg
        .get_env()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    format!(
        "| `--{long}` | {} | {} | {users} | {meaning} |",
        code(&variable),
        code(&default)
    )
    .replace("|  |", "| |")
    .replace("|  |", "| |")
}

/// The table of all metrics, from the registry.
fn metrics() -> String {
    let mut table = "| Metric | Kind | Labels | Meaning |\n|---|---|---|---|\n".to_owned();
    for metric in Metrics::new().declared() {
        let labels: Vec<_> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
        let line = format!(
            "| `{}` | {} | {} | {} |\n",
            metric.name,
            metric.kind,
            labels.join(", "),
            metric.help
        );
        table.push_str(&line.replace("|  |", "| |"));
    }
    table
}

/// Fails if the README's table with this header differs; with `UPDATE_README=1` set, replaces it
/// instead.
fn check_table(expected: &str) {
    let readme = text("README.md");
    if readme.contains(&format!("\n\n{expected}\n")) {
        return;
    }
    let header = expected.lines().next().expect("a table has a header");
    let start = readme.find(header).expect("the README has the table");
    let end = start + readme[start..].find("\n\n").expect("more follows") + 1;
    assert!(
        std::env::var_os("UPDATE_README").is_some(),
        "README.md differs from the code (UPDATE_README=1 corrects it); it says\n\n{}\nand must say\n\n{expected}",
        &readme[start..end]
    );
    let corrected = format!("{}{expected}{}", &readme[..start], &readme[end..]);
    std::fs::write(path("README.md"), corrected).expect("the README can be written");
}

#[test]
fn the_tables_of_options_and_metrics_equal_the_declarations() {
    check_table(&configuration());
    check_table(&metrics());
}

#[test]
fn every_mentioned_metric_exists() {
    let declared: Vec<_> = Metrics::new()
        .declared()
        .into_iter()
        .map(|metric| metric.name)
        .collect();
    let readme = text("README.md");
    for word in readme.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
        if word.starts_with("status_indexer_") {
            assert!(declared.iter().any(|name| name == word), "{word}");
        }
    }
}

/// The lines of code blocks in the given language.
fn fenced(document: &str, language: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inside = None;
    for line in document.lines() {
        match (line.trim().strip_prefix("```"), inside) {
            (Some(opened), None) => inside = Some(opened.to_owned()),
            (Some(_), Some(_)) => inside = None,
            (None, Some(ref opened)) => {
                if opened == language {
                    lines.push(line.trim().to_owned());
                }
                inside = Some(opened.clone());
            }
            (None, None) => inside = None,
        }
    }
    lines
}

#[test]
fn every_shown_command_is_accepted_by_the_binary() {
    let mut lines = fenced(&text("README.md"), "sh");
    // Those within sentences as well.
    for span in text("README.md").split('`').skip(1).step_by(2) {
        lines.push(span.to_owned());
    }
    let shown: Vec<_> = lines
        .iter()
        .filter(|line| line.starts_with("status-indexer ") && !line.contains('<'))
        .collect();
    assert!(shown.len() >= 6, "{shown:?}");
    for line in shown {
        let line = line.split('#').next().expect("a line has a start");
        let outcome = cli()
            .mut_args(|arg| arg.env(None::<&str>))
            .try_get_matches_from(line.split_whitespace());
        let taken = match outcome {
            Ok(_) => true,
            Err(error) => !error.use_stderr(),
        };
        assert!(taken, "{line}");
    }
}

#[test]
fn every_shown_make_target_exists() {
    let makefile = text("Makefile");
    let readme = text("README.md");
    let mut count = 0;
    for rest in readme.split("make ").skip(1) {
        let word: String = rest
            .chars()
            .take_while(|c| c.is_ascii_lowercase() || *c == '-')
            .collect();
        // In code, not in a sentence.
        if rest[word.len()..].starts_with('`') || rest[word.len()..].starts_with("    #") {
            assert!(makefile.contains(&format!("\n{word}:")), "make {word}");
            count += 1;
        }
    }
    assert!(count >= 2);
}

#[test]
fn every_link_has_a_target() {
    for document in ["README.md", "CHANGELOG.md"] {
        let text = text(document);
        let headings: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with('#'))
            .map(|line| {
                let title = line.trim_start_matches('#').trim().to_lowercase();
                format!("#{}", title.replace(' ', "-"))
            })
            .collect();
        for rest in text.split("](").skip(1) {
            let target = rest.split(')').next().expect("a link is closed");
            if target.starts_with("https://") {
                continue;
            }
            let found = if target.starts_with('#') {
                headings.iter().any(|heading| heading == target)
            } else {
                path(target).exists()
            };
            assert!(found, "{document}: {target}");
        }
    }
}
