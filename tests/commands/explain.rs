//! `status-indexer explain`: what it tells of a run, to people and to programs, and its exit codes.

use std::process::Output;

use serde_json::{Value as Json, json};

use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::writer::Writer;

/// A database with the indexer's objects, in which nothing works by itself.
struct Site {
    database: Database,
    writer: Writer,
}

impl Site {
    async fn new() -> Self {
        let database = Database::fresh().await;
        let output = Launch::on(&database).args(&["migrate"]).output().await;
        assert!(output.status.success(), "{output:?}");
        let writer = database.writer().await;
        writer.insert_flow("F").await;
        let site = Self { database, writer };
        site.execute("update status_indexer.state set valid_since = now()")
            .await;
        site
    }

    async fn execute(&self, sql: &str) {
        self.writer
            .client()
            .batch_execute(sql)
            .await
            .expect("the tables are there");
    }

    /// Has everything that waits in the queue applied, as the daemon would.
    async fn settle(&self) {
        self.execute("select status_indexer.drain(0, 1000, null)")
            .await;
    }

    async fn explain(&self, args: &[&str]) -> Output {
        let args: Vec<&str> = ["explain"].iter().chain(args).copied().collect();
        Launch::on(&self.database).args(&args).output().await
    }

    async fn text(&self, run: &str) -> String {
        let output = self.explain(&["F", run]).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    async fn json(&self, run: &str) -> Json {
        let output = self.explain(&["F", run, "--json"]).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON and nothing else")
    }
}

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[tokio::test]
async fn every_rule_is_told_in_words_and_in_json() {
    let site = Site::new().await;
    let now = site.writer.now_secs().await;
    // Which attempts (milliseconds after `now`), which heartbeat, and what becomes of it.
    let cases = [
        (
            &[
                (0, "attempt", "0"),
                (1, "attempt_ok", "False"),
                (2, "attempt", "1"),
            ][..],
            Some(now),
            "running",
            "retrying",
            None,
        ),
        (
            &[(0, "attempt", "0"), (1, "attempt_ok", "True")],
            Some(now),
            "completed",
            "end_succeeded",
            Some(now * 1000 + 1),
        ),
        (
            &[(0, "attempt", "0"), (3, "attempt_ok", "False")],
            Some(now),
            "failed",
            "end_failed",
            Some(now * 1000 + 3),
        ),
        (
            &[(0, "attempt", "0")],
            Some(now),
            "running",
            "heartbeat",
            None,
        ),
        (
            &[],
            Some(now - 5_000),
            "failed",
            "heartbeat_lost",
            Some((now - 5_000) * 1000),
        ),
        (&[], None, "failed", "no_heartbeat", None),
    ];
    for (evidence, heartbeat, status, reason, finished_at) in cases {
        let run = site.writer.insert_run("F", heartbeat).await;
        for (after, field, value) in evidence {
            site.writer
                .metadata("F", run, "end", field, value, now * 1000 + after)
                .await;
        }
        site.writer
            .metadata("F", run, "start", "attempt_ok", "False", now * 1000 + 9)
            .await;
        site.settle().await;
        let name = run.to_string();
        let text = site.text(&name).await;
        has(
            &text,
            &[
                &format!("run       F/{run}\n"),
                &format!("status    {status} ({reason})\n"),
                &format!("stored    {status} (agrees)\n"),
                "because   ",
                "cutoff    360 s, database clock ",
            ],
        );
        assert!(!text.contains("step start"), "{text}");
        let json = site.json(&name).await;
        assert_eq!(json["status"], status);
        assert_eq!(json["reason"], reason);
        assert_eq!(json["finished_at"], json!(finished_at));
        assert_eq!(json["stored"], status);
        assert_eq!(json["agrees"], true);
        assert_eq!(json["valid"], true);
        assert_eq!(json["queued"], false);
        assert_eq!(json["run_number"], run);
        assert_eq!(json["run_id"], Json::Null);
        assert_eq!(json["cutoff_secs"], 360);
        assert_eq!(json["evidence"]["last_heartbeat_ts"], json!(heartbeat));
        let rows = json["evidence"]["rows"].as_array().expect("a list");
        assert_eq!(rows.len(), evidence.len());
    }
}

#[tokio::test]
async fn the_evidence_is_listed_newest_first() {
    let site = Site::new().await;
    let run = site.writer.insert_run("F", None).await;
    let first = site.writer.attempt("F", run, 1_000).await;
    let second = site.writer.attempt_ok("F", run, "False", 2_000).await;
    let third = site.writer.attempt_ok("F", run, "True", 2_000).await;
    site.settle().await;
    let text = site.text(&run.to_string()).await;
    has(
        &text,
        &[&format!(
            "evidence
  heartbeat   none
  attempt_ok  2000  True  (task 1, id {third})
  attempt_ok  2000  False  (task 1, id {second})
  attempt     1000  0  (task 1, id {first})"
        )],
    );
    let bare = site.writer.insert_run("F", None).await;
    site.settle().await;
    has(
        &site.text(&bare.to_string()).await,
        &["end step    no attempt, no attempt_ok"],
    );
}

#[tokio::test]
async fn it_says_when_time_alone_changes_the_status() {
    let site = Site::new().await;
    let now = site.writer.now_secs().await;
    let fresh = site.writer.insert_run("F", Some(now - 60)).await;
    let ahead = site.writer.insert_run("F", Some(now + 3_600)).await;
    let lost = site.writer.insert_run("F", Some(now - 3_600)).await;
    site.settle().await;
    let text = site.text(&fresh.to_string()).await;
    has(
        &text,
        &[&format!("changes   to failed at {}, in ", now + 300)],
    );
    let text = site.text(&ahead.to_string()).await;
    has(
        &text,
        &[&format!("changes   to running at {}, in ", now + 3_240)],
    );
    let text = site.text(&lost.to_string()).await;
    has(&text, &["changes   not by time alone"]);
    let json = site.json(&ahead.to_string()).await;
    #[expect(clippy::cast_precision_loss, reason = "the clock's seconds fit")]
    let at = (now + 3_240) as f64;
    assert_eq!(json["next_change_secs"].as_f64(), Some(at));
    assert_eq!(json["next_status"], "running");
}

#[tokio::test]
async fn a_run_is_found_by_its_number_and_by_its_own_id() {
    let site = Site::new().await;
    site.execute(
        "insert into runs_v3 (flow_id, run_number, run_id, ts_epoch)
         values ('F', 7, 'argo-x''y', 0), ('F', 8, '7', 0), ('F', 9, '12345678901234567890', 0)",
    )
    .await;
    site.settle().await;
    for (name, run) in [
        ("7", 7),
        ("argo-x'y", 7),
        ("8", 8),
        ("9", 9),
        ("12345678901234567890", 9),
    ] {
        let json = site.json(name).await;
        assert_eq!(json["run_number"], run, "{name}");
    }
    has(&site.text("7").await, &["run       F/7  (run_id argo-x'y)"]);
}

#[tokio::test]
async fn an_unknown_run_exits_2() {
    let site = Site::new().await;
    let run = site.writer.insert_run("F", None).await.to_string();
    for args in [
        ["F", "999"],
        ["G", run.as_str()],
        ["f", run.as_str()],
        ["F", ""],
        ["F", " 1"],
        ["F", "99999999999"],
        ["F", "-1"],
    ] {
        // A number may begin with a minus, which is no flag then.
        let args = [&["--"], &args[..]].concat();
        let output = site.explain(&args).await;
        assert_eq!(output.status.code(), Some(2), "{args:?} {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("there is no run "), "{said}");
        assert!(output.stdout.is_empty());
    }
}

#[tokio::test]
async fn a_disagreement_exits_1_unless_something_explains_it() {
    let site = Site::new().await;
    let run = site.writer.insert_run("F", None).await;
    let name = run.to_string();
    // Its event waits.
    has(
        &site.text(&name).await,
        &["stored    running (differs; an event waits in the queue)"],
    );
    assert_eq!(site.json(&name).await["queued"], true);
    site.settle().await;

    site.execute("update runs_v3 set run_status = 'completed'")
        .await;
    for args in [&["F", &name][..], &["F", &name, "--json"]] {
        let output = site.explain(args).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        let wanted = if args.len() == 2 {
            "stored    completed (DIFFERS, and nothing waits that would explain it)"
        } else {
            "\"agrees\": false"
        };
        assert!(said.contains(wanted), "{said}");
    }

    site.execute("update status_indexer.state set valid_since = null")
        .await;
    has(
        &site.text(&name).await,
        &["stored    completed (differs; the first pass is not done)"],
    );
    site.execute("update runs_v3 set run_status = 'failed'")
        .await;
    has(
        &site.text(&name).await,
        &["stored    failed (agrees, but the first pass is not done"],
    );
}

#[tokio::test]
async fn a_value_that_is_no_boolean_is_pointed_out() {
    let site = Site::new().await;
    let run = site.writer.insert_run("F", None).await;
    site.writer.attempt_ok("F", run, "\"True\"", 1).await;
    site.settle().await;
    let text = site.text(&run.to_string()).await;
    has(
        &text,
        &[
            "failed (no_heartbeat)",
            "; the newest attempt_ok is no boolean and counts as none",
            "attempt_ok  1  \"True\"  (task 1, id ",
        ],
    );
    let json = site.json(&run.to_string()).await;
    assert_eq!(json["evidence"]["attempt_ok_is_boolean"], false);
    assert_eq!(json["evidence"]["attempt_ok"], "\"True\"");
}

#[tokio::test]
async fn numbers_at_the_end_of_their_type_are_told() {
    let site = Site::new().await;
    for heartbeat in [i64::MIN, i64::MAX] {
        let run = site.writer.insert_run("F", Some(heartbeat)).await;
        site.writer.attempt_ok("F", run, "?", i64::MIN).await;
        site.writer.attempt("F", run, i64::MAX).await;
        site.settle().await;
        let name = run.to_string();
        has(
            &site.text(&name).await,
            &["failed (heartbeat_lost)", &heartbeat.to_string()],
        );
        let json = site.json(&name).await;
        assert_eq!(json["evidence"]["last_heartbeat_ts"], heartbeat);
        assert_eq!(json["evidence"]["rows"][0]["ts_epoch"], i64::MAX);
    }
}

#[tokio::test]
async fn another_cutoff_than_the_databases_is_warned_of_and_not_used() {
    let site = Site::new().await;
    let now = site.writer.now_secs().await;
    let run = site
        .writer
        .insert_run("F", Some(now - 100))
        .await
        .to_string();
    site.settle().await;
    let output = site.explain(&["F", &run, "--cutoff", "30"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let (said, warned) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    has(&said, &["status    running (heartbeat)", "cutoff    360 s"]);
    has(
        &warned,
        &[
            "the cutoff in the database is used",
            "\"configured\":30",
            "\"stored\":360",
        ],
    );
    let output = site.explain(&["F", &run, "--cutoff", "360"]).await;
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[tokio::test]
async fn what_cannot_be_asked_exits_2() {
    let database = Database::fresh().await;
    let output = Launch::on(&database)
        .args(&["explain", "F", "1"])
        .output()
        .await;
    assert_eq!(output.status.code(), Some(2), "not migrated: {output:?}");
    let nowhere = "postgres://postgres@127.0.0.1:1/x";
    let output = Launch::on(&database)
        .args(&["explain", "F", "1"])
        .env("DATABASE_URL", nowhere)
        .output()
        .await;
    assert_eq!(output.status.code(), Some(2), "no server: {output:?}");
}
