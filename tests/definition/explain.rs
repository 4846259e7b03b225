//! `status_indexer.explain` against the oracle.

use serde_json::{Value as Json, json};
use testkit::oracle::{Evidence, Expected, Reason};
use tokio_postgres::Client;

use super::ExpectedRuns;
use super::cases::CUTOFF;

pub(super) async fn check_explain(client: &Client, all: &ExpectedRuns, now_secs: i64) {
    let rows = client
        .query(
            "select flow_id::text, run_number::bigint, status_indexer.explain(flow_id, run_number::text) as why from runs_v3",
            &[],
        )
        .await
        .expect("explain accepts any evidence");
    assert_eq!(rows.len(), all.len());
    for row in rows {
        let key = (row.get(0), row.get(1));
        let (expected, evidence) = &all[&key];
        let why: Json = row.get("why");
        let context = format!("{key:?}: {evidence:?}\n{why:#}");
        assert_eq!(why["status"], expected.status.as_str(), "{context}");
        assert_eq!(why["reason"], expected.reason.as_str(), "{context}");
        let finished = expected.finished_at_ms.map(|ms| ms.to_string());
        let shown_finish = (!why["finished_at"].is_null()).then(|| why["finished_at"].to_string());
        // A number beyond 64 bits is a float to the reader of JSON.
        if expected
            .finished_at_ms
            .is_none_or(|ms| i64::try_from(ms).is_ok())
        {
            assert_eq!(shown_finish, finished, "{context}");
        } else {
            assert!(shown_finish.is_some(), "{context}");
        }
        let agrees = why["stored"] == expected.status.as_str();
        assert_eq!(why["agrees"], agrees, "{context}");
        let malformed = why["evidence"]["attempt_ok_is_boolean"] == json!(false);
        assert_eq!(malformed, evidence.is_malformed(), "{context}");
        check_next_change(&why, expected, evidence, now_secs, &context);
        let counted = evidence.rows.iter().filter(|row| {
            row.step_name == "end" && ["attempt", "attempt_ok"].contains(&row.field_name.as_str())
        });
        let shown = why["evidence"]["rows"].as_array().expect("a list");
        assert_eq!(shown.len(), counted.count(), "{context}");
    }
}

fn check_next_change(
    why: &Json,
    expected: &Expected,
    evidence: &Evidence,
    now: i64,
    context: &str,
) {
    let heartbeat = evidence.heartbeat_secs.unwrap_or(0);
    let (at, status) = match expected.reason {
        Reason::Heartbeat => (json!(heartbeat + CUTOFF), json!("failed")),
        Reason::HeartbeatLost if heartbeat > now => (json!(heartbeat - CUTOFF), json!("running")),
        _ => (Json::Null, Json::Null),
    };
    assert_eq!(why["next_change_secs"], at, "{context}");
    assert_eq!(why["next_status"], status, "{context}");
}
