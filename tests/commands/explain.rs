//! `status-indexer explain`: its text, its JSON and its exit codes.

use std::process::Output;

use serde_json::{Value as Json, json};

use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::writer::Writer;

/// A database with the indexer's objects, without a daemon.
struct Installation {
    database: Database,
    writer: Writer,
}

impl Installation {
    async fn new() -> Self {
        let database = Database::fresh().await;
        Launch::on(&database).args(&["migrate"]).succeed().await;
        let writer = database.writer().await;
        writer.insert_flow("F").await;
        let installation = Self { database, writer };
        installation
            .execute("update status_indexer.state set valid_since = now()")
            .await;
        installation
    }

    async fn execute(&self, sql: &str) {
        self.writer
            .client()
            .batch_execute(sql)
            .await
            .expect("the tables exist");
    }

    /// Applies all queued events, as the daemon would.
    async fn drain(&self) {
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
async fn every_rule_is_explained_in_text_and_in_json() {
    let installation = Installation::new().await;
    let now = installation.writer.now_secs().await;
    // Evidence (milliseconds after `now`), heartbeat, and the expected explanation.
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
        let run = installation.writer.insert_run("F", heartbeat).await;
        for (after, field, value) in evidence {
            installation
                .writer
                .metadata("F", run, "end", field, value, now * 1000 + after)
                .await;
        }
        installation
            .writer
            .metadata("F", run, "start", "attempt_ok", "False", now * 1000 + 9)
            .await;
        installation.drain().await;
        let name = run.to_string();
        let text = installation.text(&name).await;
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
        let json = installation.json(&name).await;
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
    let installation = Installation::new().await;
    let run = installation.writer.insert_run("F", None).await;
    let first = installation.writer.attempt("F", run, 1_000).await;
    let second = installation
        .writer
        .attempt_ok("F", run, "False", 2_000)
        .await;
    let third = installation
        .writer
        .attempt_ok("F", run, "True", 2_000)
        .await;
    installation.drain().await;
    let text = installation.text(&run.to_string()).await;
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
    let bare = installation.writer.insert_run("F", None).await;
    installation.drain().await;
    has(
        &installation.text(&bare.to_string()).await,
        &["end step    no attempt, no attempt_ok"],
    );
}

#[tokio::test]
async fn the_next_change_by_time_alone_is_shown() {
    let installation = Installation::new().await;
    let now = installation.writer.now_secs().await;
    let fresh = installation.writer.insert_run("F", Some(now - 60)).await;
    let ahead = installation.writer.insert_run("F", Some(now + 3_600)).await;
    let lost = installation.writer.insert_run("F", Some(now - 3_600)).await;
    installation.drain().await;
    let text = installation.text(&fresh.to_string()).await;
    has(
        &text,
        &[&format!("changes   to failed at {}, in ", now + 300)],
    );
    let text = installation.text(&ahead.to_string()).await;
    has(
        &text,
        &[&format!("changes   to running at {}, in ", now + 3_240)],
    );
    let text = installation.text(&lost.to_string()).await;
    has(&text, &["changes   not by time alone"]);
    let json = installation.json(&ahead.to_string()).await;
    #[expect(clippy::cast_precision_loss, reason = "the clock's seconds fit")]
    let at = (now + 3_240) as f64;
    assert_eq!(json["next_change_secs"].as_f64(), Some(at));
    assert_eq!(json["next_status"], "running");
}

#[tokio::test]
async fn a_run_is_found_by_its_number_and_by_its_own_id() {
    let installation = Installation::new().await;
    installation
        .execute(
            "insert into runs_v3 (flow_id, run_number, run_id, ts_epoch)
         values ('F', 7, 'argo-x''y', 0), ('F', 8, '7', 0), ('F', 9, '12345678901234567890', 0)",
        )
        .await;
    installation.drain().await;
    for (name, run) in [
        ("7", 7),
        ("argo-x'y", 7),
        ("8", 8),
        ("9", 9),
        ("12345678901234567890", 9),
    ] {
        let json = installation.json(name).await;
        assert_eq!(json["run_number"], run, "{name}");
    }
    has(
        &installation.text("7").await,
        &["run       F/7  (run_id argo-x'y)"],
    );
}

#[tokio::test]
async fn an_unknown_run_exits_2() {
    let installation = Installation::new().await;
    let run = installation.writer.insert_run("F", None).await.to_string();
    for args in [
        ["F", "999"],
        ["G", run.as_str()],
        ["f", run.as_str()],
        ["F", ""],
        ["F", " 1"],
        ["F", "99999999999"],
        ["F", "-1"],
    ] {
        // A number may begin with a minus, which must not be taken for a flag.
        let args = [&["--"], &args[..]].concat();
        let output = installation.explain(&args).await;
        assert_eq!(output.status.code(), Some(2), "{args:?} {output:?}");
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(message.contains("has no run "), "{message}");
        assert!(output.stdout.is_empty());
    }
}

#[tokio::test]
async fn drift_exits_1_and_a_pending_event_explains_a_difference() {
    let installation = Installation::new().await;
    let run = installation.writer.insert_run("F", None).await;
    let name = run.to_string();
    // Its event is in the queue.
    has(
        &installation.text(&name).await,
        &["stored    running (differs; an event is pending)"],
    );
    assert_eq!(installation.json(&name).await["queued"], true);
    installation.drain().await;

    installation
        .execute("update runs_v3 set run_status = 'completed'")
        .await;
    for args in [&["F", &name][..], &["F", &name, "--json"]] {
        let output = installation.explain(args).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let message = String::from_utf8_lossy(&output.stdout);
        let wanted = if args.len() == 2 {
            "stored    completed (DRIFT: differs, and no pending event explains it)"
        } else {
            "\"agrees\": false"
        };
        assert!(message.contains(wanted), "{message}");
    }

    installation
        .execute("update status_indexer.state set valid_since = null")
        .await;
    has(
        &installation.text(&name).await,
        &["stored    completed (differs; the backfill is not complete)"],
    );
    installation
        .execute("update runs_v3 set run_status = 'failed'")
        .await;
    has(
        &installation.text(&name).await,
        &["stored    failed (agrees; the column is not valid yet"],
    );
}

#[tokio::test]
async fn a_value_that_is_not_a_boolean_is_pointed_out() {
    let installation = Installation::new().await;
    let run = installation.writer.insert_run("F", None).await;
    installation
        .writer
        .attempt_ok("F", run, "\"True\"", 1)
        .await;
    installation.drain().await;
    let text = installation.text(&run.to_string()).await;
    has(
        &text,
        &[
            "failed (no_heartbeat)",
            "; the newest attempt_ok is not a valid boolean and counts as missing",
            "attempt_ok  1  \"True\"  (task 1, id ",
        ],
    );
    let json = installation.json(&run.to_string()).await;
    assert_eq!(json["evidence"]["attempt_ok_is_boolean"], false);
    assert_eq!(json["evidence"]["attempt_ok"], "\"True\"");
}

#[tokio::test]
async fn numbers_at_the_limits_of_their_type_are_shown() {
    let installation = Installation::new().await;
    for heartbeat in [i64::MIN, i64::MAX] {
        let run = installation.writer.insert_run("F", Some(heartbeat)).await;
        installation
            .writer
            .attempt_ok("F", run, "?", i64::MIN)
            .await;
        installation.writer.attempt("F", run, i64::MAX).await;
        installation.drain().await;
        let name = run.to_string();
        has(
            &installation.text(&name).await,
            &["failed (heartbeat_lost)", &heartbeat.to_string()],
        );
        let json = installation.json(&name).await;
        assert_eq!(json["evidence"]["last_heartbeat_ts"], heartbeat);
        assert_eq!(json["evidence"]["rows"][0]["ts_epoch"], i64::MAX);
    }
}

#[tokio::test]
async fn a_configured_cutoff_that_differs_from_the_stored_one_is_ignored_with_a_warning() {
    let installation = Installation::new().await;
    let now = installation.writer.now_secs().await;
    let run = installation
        .writer
        .insert_run("F", Some(now - 100))
        .await
        .to_string();
    installation.drain().await;
    let output = installation.explain(&["F", &run, "--cutoff", "30"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let (message, warned) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    has(
        &message,
        &["status    running (heartbeat)", "cutoff    360 s"],
    );
    has(
        &warned,
        &[
            "using the cutoff in force in the database",
            "\"configured\":30",
            "\"in_force\":360",
        ],
    );
    let output = installation.explain(&["F", &run, "--cutoff", "360"]).await;
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[tokio::test]
async fn a_database_that_cannot_answer_exits_2() {
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
