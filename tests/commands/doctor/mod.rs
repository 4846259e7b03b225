//! `doctor`: an installation that is well has no problem, and each fault is a line of its own.
//!
//! Every fault is made on a real server. Owns the reading of the report; [`database`] has the faults that
//! a database on the shared server can have, [`server`] those that need a server, a pooler or a network
//! of their own.

mod database;
mod server;

use std::time::Duration;

use serde_json::Value;
use testkit::daemon::{Daemon, Launch};
use testkit::database::Database;
use testkit::wait::eventually;
use tokio_postgres::Client;

const SOON: Duration = Duration::from_secs(60);

/// How `doctor` is called.
struct Doctor {
    args: Vec<String>,
    launch: Launch,
}

impl Doctor {
    fn on(database: &Database) -> Self {
        Self {
            args: ["doctor", "--json"].map(str::to_owned).to_vec(),
            launch: Launch::on(database),
        }
    }

    fn arg(mut self, name: &str, value: &str) -> Self {
        self.args.extend([name.to_owned(), value.to_owned()]);
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.launch = self.launch.env(name, value);
        self
    }

    async fn report(&self) -> Report {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let output = self.launch.clone().args(&args).output().await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let json = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{error}: {text} {output:?}"));
        Report {
            json,
            code: output.status.code(),
        }
    }

    /// Waits until the report has this line, and checks the exit code with it.
    async fn eventually(&self, check: &str, state: &str, words: &str) -> Report {
        let mut last = None;
        eventually(SOON, &format!("{check} is {state}: {words}"), async || {
            let report = self.report().await;
            let found = report.has(check, state, words);
            if !found {
                eprintln!("{:#?}", report.of(check));
            }
            last = Some(report);
            found
        })
        .await;
        let report = last.expect("it was read");
        report.is(check, state, words);
        report
    }
}

/// What `doctor` printed, and its exit code.
#[derive(Debug)]
struct Report {
    json: Value,
    code: Option<i32>,
}

impl Report {
    fn findings(&self) -> &Vec<Value> {
        self.json["findings"].as_array().expect("a list")
    }

    fn of(&self, check: &str) -> Vec<&Value> {
        let of_check = |finding: &&Value| finding["check"] == check;
        self.findings().iter().filter(of_check).collect()
    }

    fn has(&self, check: &str, state: &str, words: &str) -> bool {
        self.of(check)
            .iter()
            .any(|found| found["state"] == state && found.to_string().contains(words))
    }

    /// Checks that the report has this line; a problem is the exit code 1, and says what to do.
    #[track_caller]
    fn is(&self, check: &str, state: &str, words: &str) {
        let found = self.of(check);
        assert!(self.has(check, state, words), "{check} {words}: {found:#?}");
        if state == "problem" {
            assert_eq!(self.code, Some(1));
            assert_eq!(self.json["state"], "problem");
        }
        if state == "problem" || state == "warning" {
            let advised = |found: &&Value| found["state"] != state || found["advice"].is_string();
            assert!(found.iter().all(advised), "{found:#?}");
        }
    }

    /// Checks that nothing is a problem.
    #[track_caller]
    fn is_well(&self) {
        let problems: Vec<&Value> = self
            .findings()
            .iter()
            .filter(|found| found["state"] == "problem")
            .collect();
        assert!(problems.is_empty(), "{problems:#?}");
        assert_eq!(self.code, Some(0));
    }
}

/// A database with the indexer and a daemon that is ready.
async fn installation() -> (Database, Daemon) {
    let database = Database::fresh().await;
    let daemon = Launch::on(&database).start().await;
    (database, daemon)
}

async fn migrate(database: &Database, args: &[&str]) {
    let args: Vec<&str> = ["migrate", "up"].iter().chain(args).copied().collect();
    Launch::on(database).args(&args).succeed().await;
}

async fn execute(client: &Client, sql: &str) {
    let outcome = client.batch_execute(sql).await;
    outcome.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// The URL of another role.
fn url_of(database: &Database, role: &str) -> String {
    database.url().replace("postgres@", &format!("{role}@"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_that_is_well_has_no_problem_and_every_check_is_done() {
    let (database, daemon) = installation().await;
    let report = Doctor::on(&database).report().await;
    report.is_well();
    for name in status_indexer::doctor::names() {
        // Other tests share the server.
        let states = if ["connections", "replication_slots"].contains(&name) {
            &["ok", "warning"][..]
        } else {
            &["ok"]
        };
        let found = report.of(name);
        assert!(!found.is_empty(), "{name}");
        for found in found {
            let state = found["state"].as_str().expect("a text");
            assert!(states.contains(&state), "{found:#?}");
        }
    }

    // As text: one line for each finding, and one with their numbers.
    let output = Launch::on(&database).args(&["doctor"]).output().await;
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.lines().count(), report.findings().len() + 1, "{text}");
    assert!(text.contains("\nok       leader "), "{text}");
    assert!(
        text.lines()
            .last()
            .expect("a line")
            .starts_with("0 problem, ")
    );
    assert!(daemon.terminate().await.success());
}

#[tokio::test]
async fn the_shape_of_the_json_is_as_documented() {
    let database = Database::fresh().await;
    migrate(&database, &[]).await;
    let mut json = Doctor::on(&database).report().await.json;
    // What differs between machines, versions of the server and moments.
    for name in ["version", "commit"] {
        assert!(json[name].is_string());
        json[name] = "TEXT".into();
    }
    json["counts"] = json["counts"]
        .as_object()
        .expect("an object")
        .keys()
        .map(|name| (name.clone(), Value::from("NUMBER")))
        .collect();
    let findings = json["findings"].as_array_mut().expect("a list");
    findings.retain(|found| ["leader", "column", "definition"].contains(&text(found)));
    let json = serde_json::to_string_pretty(&json).expect("a value");
    insta::assert_snapshot!("doctor_json", json);
}

fn text(found: &Value) -> &str {
    found["check"].as_str().expect("a text")
}

#[tokio::test]
async fn nothing_is_changed() {
    const CONTENT: &str = "\
select (select s::text from status_indexer.state s),
       (select jsonb_agg(q)::text from status_indexer.queue q),
       (select jsonb_agg(r)::text from runs_v3 r),
       (select last_value::text from status_indexer.leader_heartbeat),
       (select last_value::text from status_indexer.notify_suppressed_until),
       (select count(*)::text from pg_class),
       (select count(*)::text from pg_proc)";
    let database = Database::fresh().await;
    migrate(&database, &[]).await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    writer.insert_run("F", None).await;
    let content = async || {
        let row = writer.client().query_one(CONTENT, &[]).await;
        let row = row.expect("the indexer is installed");
        (0..7)
            .map(|at| row.get(at))
            .collect::<Vec<Option<String>>>()
    };
    let before = content().await;
    Doctor::on(&database).report().await;
    assert_eq!(content().await, before);
}

#[tokio::test]
async fn limits_that_cannot_be_used_exit_64() {
    let database = Database::empty().await;
    for args in [
        &["doctor", "--wait", "0"][..],
        &["doctor", "--timeout", "x"],
        &["doctor", "--max-transaction-age=-1"],
        &["doctor", "extra"],
    ] {
        let output = Launch::on(&database).args(args).output().await;
        assert_eq!(output.status.code(), Some(64), "{args:?}");
    }
}
