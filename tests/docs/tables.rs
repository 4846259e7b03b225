//! The tables of flags and metrics against the code.
//!
//! `docs/configuration.md` and `docs/metrics.md` contain one table each that is generated from
//! clap's definition and from the registry. `UPDATE_DOCS=1` replaces them.

use std::fmt::Write as _;

use status_indexer::metrics::Metrics;

use super::{cli, flags, path, text};

/// The table of all flags, from clap's definition: flag, variable, default, commands, meaning.
fn configuration() -> String {
    let cli = cli();
    let commands: Vec<_> = cli
        .get_subcommands()
        .filter(|command| command.get_name() != "help")
        .collect();
    let with_database: Vec<_> = commands
        .iter()
        .filter(|command| has_database(command))
        .map(|command| format!("`{}`", command.get_name()))
        .collect();
    let mut rows: Vec<String> = Vec::new();
    let mut seen = Vec::new();
    for arg in flags(&cli)
        .into_iter()
        .chain(commands.iter().flat_map(|c| flags(c)))
    {
        let long = arg.get_long().expect("flags have long names");
        // A flag of several commands may be another one in each.
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
        } else if users == with_database {
            "all with a database".to_owned()
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

/// Whether a command connects to a database.
fn has_database(command: &clap::Command) -> bool {
    let flags = flags(command);
    flags
        .iter()
        .any(|flag| flag.get_long() == Some("database-url"))
}

fn row(arg: &clap::Arg, long: &str, users: &str) -> String {
    let help = arg
        .get_help()
        .map(|help| help.to_string().replace('\n', " "))
        .unwrap_or_default();
    // Where a value may come from several places, the default is not clap's but part of the help.
    let (meaning, default_text) = match help.split_once(" [default: ") {
        Some((meaning, rest)) => (meaning.to_owned(), rest.trim_end_matches(']').to_owned()),
        None => (help, String::new()),
    };
    let defaults = arg.get_default_values();
    let takes_value = arg.get_action().takes_values();
    let default = match defaults.first() {
        Some(default) if takes_value => default.to_string_lossy().into_owned(),
        _ => default_text,
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

/// Fails if the table with this header differs from the code; with `UPDATE_DOCS=1` set, replaces
/// it.
pub(crate) fn check(document: &str, expected: &str) {
    let current = text(document);
    if current.contains(&format!("\n\n{expected}\n"))
        || current.ends_with(&format!("\n\n{expected}"))
    {
        return;
    }
    let header = expected.lines().next().expect("a table has a header");
    let start = current
        .find(header)
        .unwrap_or_else(|| panic!("{document} has no table with the header {header}"));
    let end = current[start..]
        .find("\n\n")
        .map_or(current.len(), |length| start + length + 1);
    assert!(
        std::env::var_os("UPDATE_DOCS").is_some(),
        "{document} differs from the code (UPDATE_DOCS=1 corrects it); it contains\n\n{}\nand must \
         contain\n\n{expected}",
        &current[start..end]
    );
    let corrected = format!("{}{expected}{}", &current[..start], &current[end..]);
    std::fs::write(path(document), corrected).expect("the document can be written");
}

#[test]
fn the_tables_list_the_flags_and_metrics_of_the_binary() {
    check("docs/configuration.md", &configuration());
    check("docs/metrics.md", &metrics());
}

/// Names in the documents that are those of triggers.
const TRIGGERS: [&str; 3] = [
    "status_indexer_insert",
    "status_indexer_update",
    "status_indexer_delete",
];

#[test]
fn every_metric_in_the_documents_exists() {
    let declared: Vec<_> = Metrics::new()
        .declared()
        .into_iter()
        .map(|metric| metric.name)
        .collect();
    for document in ["README.md", "docs/metrics.md", "docs/operations.md"] {
        for word in text(document).split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
            if word.starts_with("status_indexer_") && !TRIGGERS.contains(&word) {
                assert!(
                    declared.iter().any(|name| name == word),
                    "{document}: {word}"
                );
            }
        }
    }
}
