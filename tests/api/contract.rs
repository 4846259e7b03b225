//! The contract with readers: each kind of request and its answer.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::server::{Answer, ApiServer};

/// Five runs, newest first: 5 running, 4 failed, 3 completed (with an id), 2 and 1 failed.
const ROWS: &str = r#"
insert into flows_v3 (flow_id, user_name, ts_epoch, tags, system_tags)
values ('F', 't', 1, '[]', '[]'), ('a/b', 't', 1, '[]', '[]');
insert into runs_v3 (flow_id, run_number, user_name, ts_epoch, tags, system_tags, run_id, last_heartbeat_ts, run_status)
values ('F', 1, 'alice', 100, '["a"]', '["user:alice"]', null, null, 'failed'),
       ('F', 2, 'alice', 200, '["b"]', '["user:bob"]', null, 5, 'failed'),
       ('F', 3, 'tester', 300, '["a", "b"]', '["x y"]', 'sched-1', null, 'completed'),
       ('F', 4, null, 300, null, null, null, 7, 'failed'),
       ('F', 5, 'Tés"t', 500, '[]', '["ü"]', null, 9, 'running'),
       ('a/b', 6, 'u', 1, '[]', '[]', null, 9, 'running');"#;

/// The parameters of a request.
type Params = &'static [(&'static str, &'static str)];

async fn server() -> ApiServer {
    let server = ApiServer::new().await;
    server.sql(ROWS).await;
    server
}

fn cursor(json: &str) -> String {
    STANDARD.encode(json)
}

#[track_caller]
fn says(answer: &Answer, code: u16, body: &str) {
    assert_eq!((answer.code, answer.json()), (code, json!(body)));
}

#[tokio::test]
async fn the_keys_of_a_run_are_ordered_with_optional_ones_at_the_end() {
    let server = server().await;
    let all = server.get("/flows/F/runs").await;
    assert!(
        all.text.starts_with(
            r#"[{"flow_id":"F","run_number":5,"user_name":"Tés\"t","ts_epoch":500,"tags":[],"system_tags":["ü"],"last_heartbeat_ts":9},{"flow_id":"F","run_number":4,"user_name":null,"ts_epoch":300,"tags":null,"system_tags":null,"last_heartbeat_ts":7},{"flow_id":"F","run_number":"sched-1","#
        ),
        "{}",
        all.text
    );
    assert!(
        all.text
            .ends_with(r#""last_heartbeat_ts":null,"user":"alice"}]"#),
        "{}",
        all.text
    );
    let failed = server
        .runs(&[("status", "failed"), ("user", "alice")])
        .await;
    assert!(
        failed
            .text
            .ends_with(r#""last_heartbeat_ts":null,"status":"failed","user":"alice"}]"#),
        "{}",
        failed.text
    );
}

#[tokio::test]
async fn the_list_is_complete_without_a_filter_and_paged_with_one() {
    let server = server().await;
    let all = server.get("/flows/F/runs?bogus=1&_bogus=2").await;
    assert_eq!(all.numbers(), ["5", "4", "sched-1", "2", "1"]);
    assert_eq!(all.header("x-limit"), None);
    assert_eq!(all.header("content-type"), Some("application/json"));
    assert_eq!(all.header("metadata_service_version"), Some("2.6.1"));
    for query in ["_limit=", "_cursor=", "flow_id=F", "ts_epoch:ge=0"] {
        let page = server.get(&format!("/flows/F/runs?{query}")).await;
        assert_eq!(page.numbers(), all.numbers(), "{query}");
        assert_eq!(page.header("x-limit"), Some("50"), "{query}");
        assert_eq!(page.header("x-next-cursor"), None, "{query}");
    }
    for (limit, shown) in [("2", "2"), ("500", "500"), ("501", "500"), (" 3 ", "3")] {
        let page = server.runs(&[("_limit", limit)]).await;
        assert_eq!(page.header("x-limit"), Some(shown));
    }
    let none = server.runs(&[("_limit", "0")]).await;
    assert_eq!(none.numbers(), [""; 0]);
    assert_eq!(none.header("x-next-cursor"), None);
    assert_eq!(server.get("/flows/Unknown/runs").await.text, "[]");
    assert_eq!(
        server.get("/flows/Unknown/runs?status=failed").await.text,
        "[]"
    );
    assert_eq!(server.get("/flows/a%2Fb/runs").await.numbers(), ["6"]);
}

#[tokio::test]
async fn cursors_lead_through_all_pages() {
    let server = server().await;
    let first = server.runs(&[("_limit", "2")]).await;
    assert_eq!(first.numbers(), ["5", "4"]);
    let next = first.header("x-next-cursor").expect("there is more");
    assert_eq!(next, cursor(r#"{"ts_epoch": 300, "run_number": 4}"#));
    let second = server.runs(&[("_limit", "2"), ("_cursor", next)]).await;
    assert_eq!(second.numbers(), ["sched-1", "2"]);
    // The number, although the run is shown by its id.
    let next = server.runs(&[("_limit", "3")]).await;
    let next = next.header("x-next-cursor").expect("there is more");
    assert_eq!(next, cursor(r#"{"ts_epoch": 300, "run_number": 3}"#));
    let last = server.runs(&[("_limit", "2"), ("_cursor", next)]).await;
    assert_eq!(last.numbers(), ["2", "1"]);
    assert_eq!(last.header("x-next-cursor"), None);
}

#[tokio::test]
async fn an_offset_skips_rows_after_filtering() {
    let server = server().await;
    let page = server
        .runs(&[("status", "failed"), ("_offset", "1"), ("_limit", "1")])
        .await;
    assert_eq!(page.numbers(), ["2"]);
    let next = page.header("x-next-cursor").expect("there is more");
    let rest = server
        .runs(&[("status", "failed"), ("_cursor", next)])
        .await;
    assert_eq!(rest.numbers(), ["1"]);
    let several = server
        .runs(&[("status", "failed,completed"), ("_offset", "2")])
        .await;
    assert_eq!(several.numbers(), ["2", "1"]);
    assert_eq!(server.runs(&[("_offset", "3")]).await.numbers(), ["2", "1"]);
    for far in ["5", "9223372036854775807"] {
        assert_eq!(server.runs(&[("_offset", far)]).await.numbers(), [""; 0]);
        let several = [("status:ne", "running"), ("_offset", far)];
        assert_eq!(server.runs(&several).await.numbers(), [""; 0]);
    }
    let both = server.runs(&[("_offset", "1"), ("_cursor", next)]).await;
    says(&both, 400, "_offset cannot be combined with _cursor");
}

#[tokio::test]
async fn runs_are_filtered_by_status() {
    let server = server().await;
    let cases: [(Params, &[&str]); 14] = [
        (&[("status", "running")], &["5"]),
        (&[("status:eq", "completed")], &["sched-1"]),
        (
            &[("status", "failed,completed")],
            &["4", "sched-1", "2", "1"],
        ),
        (
            &[("status", "failed"), ("status", "running")],
            &["5", "4", "2", "1"],
        ),
        (
            &[("status", "failed"), ("status:eq", "failed")],
            &["4", "2", "1"],
        ),
        (&[("status", "running,running")], &["5"]),
        (
            &[("status", "running,failed,completed")],
            &["5", "4", "sched-1", "2", "1"],
        ),
        (&[("status:ne", "failed")], &["5", "sched-1"]),
        (
            &[("status:ne", "failed,running")],
            &["5", "4", "sched-1", "2", "1"],
        ),
        (
            &[("status:ne", "failed"), ("status:ne", "running")],
            &["sched-1"],
        ),
        (
            &[("status", "failed,running"), ("status:ne", "failed")],
            &["5"],
        ),
        (&[("status", "null")], &[]),
        (&[("status:is", "null")], &[]),
        (&[("status:co", "failed")], &["4", "2", "1"]),
    ];
    for (params, expected) in cases {
        assert_eq!(server.runs(params).await.numbers(), expected, "{params:?}");
    }
}

#[tokio::test]
async fn runs_are_filtered_by_other_fields() {
    let server = server().await;
    let cases: [(&str, &str, &[&str]); 33] = [
        ("user_name", "alice", &["2", "1"]),
        ("user_name", "alice,tester", &["sched-1", "2", "1"]),
        ("user_name", "", &[]),
        ("user_name", "null", &["4"]),
        ("user_name:ne", "null", &["4"]),
        ("user_name", "tester,null", &["4", "sched-1"]),
        ("user_name:ne", "alice", &["5", "sched-1"]),
        ("user_name:co", "EST", &["sched-1"]),
        ("user_name:sw", "AL", &["2", "1"]),
        ("user_name:ew", "ER", &["sched-1"]),
        ("user_name:li", "T_s%", &["5", "sched-1"]),
        ("run_id:ge", "sched", &["sched-1"]),
        ("user", "alice", &["1"]),
        ("user", "null", &["5", "4", "sched-1", "2"]),
        ("user:co", "LIC", &["1"]),
        ("run_id", "sched-1", &["sched-1"]),
        ("run_id:is", "null", &["5", "4", "2", "1"]),
        ("run_number", "3", &["sched-1"]),
        ("run_number", " 02,1", &["2", "1"]),
        ("run_number:gt", "3", &["5", "4"]),
        (
            "run_number:lt",
            "99999999999",
            &["5", "4", "sched-1", "2", "1"],
        ),
        ("ts_epoch:ge", "300", &["5", "4", "sched-1"]),
        ("ts_epoch:lt", "+200", &["1"]),
        ("ts_epoch:le", "100,null", &["1"]),
        ("last_heartbeat_ts", "null", &["sched-1", "1"]),
        ("last_heartbeat_ts:gt", "5", &["5", "4"]),
        ("flow_id", "F", &["5", "4", "sched-1", "2", "1"]),
        ("flow_id", "a/b", &[]),
        ("tags", "[]", &["5"]),
        ("tags", r#"["a"]"#, &["1"]),
        ("tags", "null", &["4"]),
        ("system_tags", r#"["ü"]"#, &["5"]),
        ("system_tags:ne", r#"["ü"]"#, &["sched-1", "2", "1"]),
    ];
    for (key, value, expected) in cases {
        let page = server.runs(&[(key, value)]).await;
        assert_eq!(page.numbers(), expected, "{key}={value}");
    }
    let both = server
        .runs(&[("ts_epoch:ge", "200"), ("ts_epoch:le", "300")])
        .await;
    assert_eq!(both.numbers(), ["4", "sched-1", "2"]);
}

#[tokio::test]
async fn runs_are_filtered_by_tags_of_both_kinds() {
    let server = server().await;
    let cases: [(&str, &str, &[&str]); 11] = [
        ("_tags", "a", &["sched-1", "1"]),
        ("_tags", "a,b", &["sched-1"]),
        ("_tags:all", "a,user:alice", &["1"]),
        ("_tags:other", "a,b", &["sched-1"]),
        ("_tags:any", "b,user:alice", &["sched-1", "2", "1"]),
        ("_tags:any", "null", &[]),
        ("_tags", "", &[]),
        ("_tags:likeany", "BOB,bob", &["2"]),
        ("_tags:likeany", r#""]["#, &["sched-1", "2", "1"]),
        ("_tags:likeall", "a,b", &["sched-1"]),
        ("_tags:likeany", "", &["5", "sched-1", "2", "1"]),
    ];
    for (key, value, expected) in cases {
        let page = server.runs(&[(key, value)]).await;

        assert_eq!(page.numbers(), expected, "{key}={value}");
    }
}

#[tokio::test]
async fn invalid_requests_return_400_with_a_reason() {
    let server = server().await;
    let number = "expected a non-negative integer, got";
    let cases = [
        (
            "status",
            "bogus",
            "unsupported status filter: bogus".to_owned(),
        ),
        ("status", "", "unsupported status filter: ".to_owned()),
        (
            "status",
            "running,Failed",
            "unsupported status filter: Failed".to_owned(),
        ),
        (
            "status:EQ",
            "failed",
            "unsupported operator 'EQ' for field 'status'".to_owned(),
        ),
        (
            "status:",
            "failed",
            "unsupported operator '' for field 'status'".to_owned(),
        ),
        (
            "status:gt",
            "failed",
            "unsupported operator 'gt' for field 'status'".to_owned(),
        ),
        (
            "user_name:eq:x",
            "a",
            "unsupported operator 'eq:x' for field 'user_name'".to_owned(),
        ),
        (
            "ts_epoch",
            "x",
            "invalid ts_epoch: expected integer epoch milliseconds, got 'x'".to_owned(),
        ),
        (
            "ts_epoch:ge",
            "",
            "invalid ts_epoch: expected integer epoch milliseconds, got ''".to_owned(),
        ),
        (
            "last_heartbeat_ts",
            "1.5",
            "invalid last_heartbeat_ts: expected integer epoch milliseconds, got '1.5'".to_owned(),
        ),
        (
            "run_number",
            "x",
            "invalid run_number: expected integer, got 'x'".to_owned(),
        ),
        (
            "run_number",
            "9223372036854775808",
            "invalid run_number: expected integer, got '9223372036854775808'".to_owned(),
        ),
        (
            "tags",
            "{",
            "invalid tags: expected JSON, got '{'".to_owned(),
        ),
        ("_cursor", "zzz", "Invalid cursor".to_owned()),
        ("_limit", "-1", format!("invalid _limit: {number} '-1'")),
        ("_limit", "x", format!("invalid _limit: {number} 'x'")),
        (
            "_limit",
            "9223372036854775808",
            format!("invalid _limit: {number} '9223372036854775808'"),
        ),
        ("_offset", "-1", format!("invalid _offset: {number} '-1'")),
        ("_offset", "1e3", format!("invalid _offset: {number} '1e3'")),
        ("user_name", "a\0b", "NUL bytes are not allowed".to_owned()),
    ];
    for (key, value, reason) in cases {
        says(&server.runs(&[(key, value)]).await, 400, &reason);
    }
    for json in [
        "{}",
        "[1]",
        r#"{"ts_epoch": 1}"#,
        r#"{"ts_epoch": null, "run_number": 1}"#,
    ] {
        says(
            &server.runs(&[("_cursor", &cursor(json))]).await,
            400,
            "Invalid cursor",
        );
    }
    // Valid JSON that `jsonb` refuses.
    let escape = server.runs(&[("tags", r#""\u0000""#)]).await;
    assert_eq!(escape.code, 400, "{}", escape.text);
}

#[tokio::test]
async fn other_methods_than_get_return_405() {
    let server = server().await;
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "PURGE"] {
        let method = method.parse().expect("a method");
        let answer = server.request(method, "/flows/F/runs").await;
        assert_eq!((answer.code, answer.header("allow")), (405, Some("GET")));
    }
    for path in [
        "/",
        "/flows",
        "/flows/F",
        "/flows/F/runs/",
        "/flows//runs",
        "/flows/F/runs/3",
    ] {
        let answer = server.get(path).await;
        assert_eq!(answer.code, 404, "{path}");
        assert!(answer.json().is_string());
    }
}

#[tokio::test]
async fn a_status_filter_returns_503_until_the_column_is_valid() {
    let server = server().await;
    server
        .sql("update status_indexer.state set valid_since = null")
        .await;
    for query in [
        "status=failed",
        "status:ne=failed",
        "status=null",
        "status=running&user=x",
    ] {
        let answer = server.get(&format!("/flows/F/runs?{query}")).await;
        says(
            &answer,
            503,
            "statuses are not available yet: the backfill is not complete",
        );
    }
    assert_eq!(server.get("/flows/F/runs?_limit=1").await.numbers(), ["5"]);
    assert_eq!(server.get("/flows/F/runs").await.numbers().len(), 5);
}

#[tokio::test]
async fn the_status_of_one_run_is_explained() {
    let server = server().await;
    let insert = "\
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, user_name, ts_epoch, tags, system_tags)
values ('F', 3, 'end', 1, 'attempt_ok', 'True', 'x', 't', 400, '[]', '[]')";
    server.sql(insert).await;
    for run in ["3", "sched-1"] {
        let answer = server.get(&format!("/flows/F/runs/{run}/status")).await;
        assert_eq!(answer.code, 200, "{}", answer.text);
        let said = answer.json();
        assert_eq!(said["status"], "completed");
        assert_eq!(said["reason"], "end_succeeded");
        assert_eq!(said["finished_at"], 400);
        assert_eq!(said["evidence"]["rows"][0]["value"], "True");
        assert_eq!(said["next_status"], json!(null));
    }
    let gone = server.get("/flows/F/runs/99/status").await;
    says(&gone, 404, "run 99 of flow F does not exist");
    assert_eq!(server.get("/flows/Unknown/runs/1/status").await.code, 404);
    let answer = server
        .request(reqwest::Method::POST, "/flows/F/runs/3/status")
        .await;
    assert_eq!(answer.code, 405);
}
