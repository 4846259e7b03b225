//! The runbook against the alerts, the database and the binary.
//!
//! The commands of `status-indexer` in it are tested with those of all documents, by `docs::commands`.

use testkit::daemon::Launch;
use testkit::database::Database;

use super::rules::alerts;
use crate::docs::text;

const RUNBOOK: &str = "docs/runbook.md";

/// The section of each alert, by its name.
fn sections() -> Vec<(String, String)> {
    let document = text(RUNBOOK);
    let parts = document.split("\n### ").skip(1);
    parts
        .filter(|part| part.starts_with("StatusIndexer"))
        .map(|part| {
            let (title, content) = part.split_once('\n').expect("a section has a text");
            // The next heading of a higher level ends it.
            let content = content.split("\n## ").next().unwrap_or_default();
            (title.to_owned(), content.to_owned())
        })
        .collect()
}

/// The code blocks of a language, each as a whole.
fn blocks(content: &str, language: &str) -> Vec<String> {
    let open = format!("```{language}\n");
    let opened = content.split(&open).skip(1);
    opened
        .map(|rest| rest.split("```").next().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn there_is_one_section_for_each_alert() {
    let mut titles: Vec<_> = sections().into_iter().map(|(title, _)| title).collect();
    let mut alerts = alerts();
    titles.sort();
    alerts.sort();
    assert_eq!(titles, alerts);
    // The overview links to each of them once; `docs::links` checks that the links lead somewhere.
    let document = text(RUNBOOK);
    let overview = document.split("\n### ").next().unwrap_or_default();
    for alert in alerts {
        let short = alert.trim_start_matches("StatusIndexer");
        let link = format!("[{short}](#{})", alert.to_lowercase());
        assert_eq!(overview.matches(&link).count(), 1, "{link}");
    }
}

#[test]
fn each_section_has_its_four_parts() {
    for (title, content) in sections() {
        let mut rest = content.as_str();
        for part in ["**Meaning.**", "**Impact.**", "**Look.**", "**Do.**"] {
            let (_, after) = rest
                .split_once(part)
                .unwrap_or_else(|| panic!("{title} lacks {part}"));
            rest = after;
        }
        let exact = !blocks(&content, "sql").is_empty() || !blocks(&content, "sh").is_empty();
        assert!(exact, "{title} shows no command");
    }
}

/// A statement that only reads is executed in a read-only transaction, so that it surely does.
#[tokio::test]
async fn the_statements_can_be_executed() {
    const CANNOT_BE_UNDONE: &str = "reindex table concurrently";
    let database = Database::fresh().await;
    let daemon = Launch::on(&database).start().await;
    let client = database.client().await;
    let mut count = 0;
    for (title, content) in sections() {
        for statement in blocks(&content, "sql") {
            count += 1;
            let changes = ["alter ", "reindex ", "select status_indexer.invalidate()"]
                .iter()
                .any(|start| statement.starts_with(start));
            let executed = if statement.starts_with(CANNOT_BE_UNDONE) {
                client.batch_execute(&statement).await
            } else {
                let begin = if changes { "begin" } else { "begin read only" };
                let whole = format!("{begin}; {statement}; rollback");
                client.batch_execute(&whole).await
            };
            executed.unwrap_or_else(|error| panic!("{title}: {statement}{error:?}"));
        }
    }
    assert!(count > 25, "{count}");
    daemon.ready().await;
}

/// `curl` in the runbook asks only for paths that exist.
#[tokio::test]
async fn the_addresses_of_the_daemon_answer() {
    let database = Database::fresh().await;
    let daemon = Launch::on(&database).start().await;
    let document = text(RUNBOOK);
    let client = reqwest::Client::builder().no_proxy().build();
    let client = client.expect("a plain client needs nothing");
    let mut count = 0;
    for (port, address) in [
        ("127.0.0.1:9487", daemon.address().await),
        ("127.0.0.1:8081", daemon.api().await),
    ] {
        for rest in document.split(port).skip(1) {
            let end = rest.find(|c: char| c.is_whitespace() || c == '\'');
            let path = &rest[..end.unwrap_or(rest.len())];
            let answer = client.get(format!("http://{address}{path}")).send().await;
            let code = answer.expect("it answers").status();
            assert!(code.is_success(), "{path}: {code}");
            count += 1;
        }
    }
    assert!(count > 5, "{count}");
}

/// Metrics and log messages that the runbook names are those of the daemon.
#[test]
fn names_and_quotations_are_those_of_the_daemon() {
    let document = text(RUNBOOK);
    let declared = status_indexer::metrics::Metrics::new().declared();
    for word in document.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
        if word.starts_with("status_indexer_") && word != "status_indexer_insert" {
            assert!(declared.iter().any(|metric| metric.name == word), "{word}");
        }
    }
    for (message, source) in [
        ("waiting for the database", "src/wait.rs"),
        ("cannot open LISTEN connection", "src/daemon/listener.rs"),
        ("the stored status had drifted", "src/daemon/reconciler.rs"),
        ("the cutoff changed", "src/daemon/reconciler.rs"),
        ("the database has not answered yet", "src/api.rs"),
        ("the database does not answer", "src/api/reader.rs"),
        ("the database took too long", "src/api/reader.rs"),
        ("statuses are not available yet", "src/api/runs.rs"),
        ("too many requests are waiting", "src/api/error.rs"),
        ("other answers take all the memory", "src/api/error.rs"),
    ] {
        assert!(document.contains(message), "the runbook lacks {message:?}");
        assert!(text(source).contains(message), "{source} lacks {message:?}");
    }
    let lock = text("src/pg/names.rs").replace('_', "");
    assert!(lock.contains("1937011049") && document.contains("1937011049"));
}

/// The alert sees the first error with each of these codes.
#[test]
fn the_codes_that_are_explained_are_exported_from_the_start() {
    let rendered = status_indexer::metrics::Metrics::new().render();
    let sections = sections();
    let mut explained = sections.iter();
    let (_, content) = explained
        .find(|(title, _)| title == "StatusIndexerDatabaseErrors")
        .expect("the alert has a section");
    let rows = content.lines().filter(|line| line.starts_with("| `"));
    let codes = rows.flat_map(|row| {
        let cell = row.split('|').nth(1).unwrap_or_default();
        cell.split('`').skip(1).step_by(2)
    });
    let mut count = 0;
    for code in codes {
        let series = format!("status_indexer_db_errors_total{{sqlstate=\"{code}\"}} 0");
        assert!(rendered.contains(&series), "{code}");
        count += 1;
    }
    assert!(count > 10, "{count}");
}
