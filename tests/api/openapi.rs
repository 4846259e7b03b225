//! `/openapi.json` against the handlers: every path, parameter and code of it is tried.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use status_indexer::api::Limits;
use status_indexer::pg::SessionMode;

use super::server::{Answer, ApiServer, LIMITS, unlock};
use testkit::wait::eventually_eq;

const ROWS: &str = "\
insert into flows_v3 (flow_id, user_name, ts_epoch, tags, system_tags)
values ('F', 't', 1, '[]', '[]');
insert into runs_v3 (flow_id, run_number, user_name, ts_epoch, tags, system_tags, run_status)
values ('F', 1, 'u', 1, '[]', '[\"user:u\"]', 'failed'), ('F', 2, 'u', 2, '[]', '[]', 'running');";

/// The part of JSON Schema that this document uses.
fn fits(document: &Value, schema: &Value, value: &Value) -> bool {
    if let Some(name) = schema["$ref"].as_str() {
        let pointer = name.trim_start_matches('#');
        let schema = document
            .pointer(pointer)
            .expect("references lead somewhere");
        return fits(document, schema, value);
    }
    if let Some(any) = schema["oneOf"].as_array() {
        return any.iter().any(|schema| fits(document, schema, value));
    }
    if value.is_null() {
        return schema["nullable"] == true;
    }
    let kind = match schema["type"].as_str().expect("schemas have types") {
        "string" => value.is_string(),
        "integer" => value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.as_array().is_some_and(|items| {
            items
                .iter()
                .all(|item| fits(document, &schema["items"], item))
        }),
        "object" => value.as_object().is_some_and(|object| {
            let required = schema["required"].as_array().into_iter().flatten();
            let known = schema["properties"].as_object();
            required
                .into_iter()
                .all(|name| object.contains_key(name.as_str().expect("names")))
                && known.is_none_or(|known| {
                    object.iter().all(|(name, value)| {
                        known
                            .get(name)
                            .is_some_and(|schema| fits(document, schema, value))
                    })
                })
        }),
        other => panic!("unexpected type {other}"),
    };
    let listed = schema["enum"].as_array();
    kind && listed.is_none_or(|listed| listed.contains(value))
}

struct Check {
    document: Value,
    seen: BTreeMap<String, BTreeSet<String>>,
}

impl Check {
    /// The answer's code, headers and body are among those described for the path.
    #[track_caller]
    fn described(&mut self, path: &str, answer: &Answer) {
        let code = answer.code.to_string();
        let response = &self.document["paths"][path]["get"]["responses"][&code];
        assert!(
            response.is_object(),
            "{path} {code} is not described: {}",
            answer.text
        );
        let schema = &response["content"]["application/json"]["schema"];
        if !answer.text.is_empty() {
            assert!(
                fits(&self.document, schema, &answer.json()),
                "{path}: {}",
                answer.text
            );
        }
        assert_eq!(answer.header("content-type"), Some("application/json"));
        self.seen.entry(path.to_owned()).or_default().insert(code);
    }
}

#[tokio::test]
async fn every_described_answer_occurs_and_no_other() {
    let limits = Limits {
        pool_max: 1,
        queue: 0,
        ..LIMITS
    };
    let server = ApiServer::with(limits, SessionMode::Session).await;
    server.sql(ROWS).await;
    let document = server.get("/openapi.json").await.json();
    let (runs, status, own) = (
        "/flows/{flow_id}/runs",
        "/flows/{flow_id}/runs/{run}/status",
        "/openapi.json",
    );
    let mut check = Check {
        document: document.clone(),
        seen: BTreeMap::new(),
    };
    let places = [
        (runs, "/flows/F/runs"),
        (status, "/flows/F/runs/1/status"),
        (own, "/openapi.json"),
    ];
    let long = "x".repeat(17_000);
    for (path, place) in places {
        check.described(path, &server.get(place).await);
        let post = server.request(reqwest::Method::POST, place).await;
        check.described(path, &post);
        check.described(path, &server.get(&format!("{place}?{long}")).await);
    }
    // Every parameter is read: its example is accepted, and an invalid value is refused.
    let parameters = document["paths"][runs]["get"]["parameters"]
        .as_array()
        .expect("a list");
    for parameter in parameters
        .iter()
        .filter(|parameter| parameter["in"] == "query")
    {
        let name = parameter["name"].as_str().expect("a name");
        let example = parameter["example"].as_str().expect("an example");
        let answer = server.runs(&[(name, example)]).await;
        assert_eq!(answer.code, 200, "{name}={example}: {}", answer.text);
        check.described(runs, &answer);
        let paginated = answer.header("x-limit").is_some();
        assert_eq!(paginated, name != "_offset", "{name}");
        let wrong = server.runs(&[(&format!("{name}:nonsense"), example)]).await;
        assert_eq!(
            wrong.code == 400,
            !name.starts_with('_'),
            "{name}: {}",
            wrong.text
        );
    }
    check.described(runs, &server.get("/flows/F/runs?status=x").await);
    check.described(runs, &server.get("/flows/F%zz/runs").await);
    check.described(status, &server.get("/flows/F/runs/%ff/status").await);
    check.described(status, &server.get("/flows/F/runs/7/status").await);
    busy(&server, &mut check, runs, status).await;
    for (path, item) in document["paths"].as_object().expect("paths") {
        let described: BTreeSet<String> = item["get"]["responses"]
            .as_object()
            .expect("responses")
            .keys()
            .cloned()
            .collect();
        assert_eq!(described, check.seen[path], "{path}");
    }
}

/// A 503: one request reads, and no other may wait.
async fn busy(server: &ApiServer, check: &mut Check, runs: &str, status: &str) {
    let blocker = server.lock().await;
    let waiting = server.get("/flows/F/runs?status=failed");
    let others = async {
        eventually_eq(
            Duration::from_secs(10),
            "one waits for the lock",
            1,
            async || server.blocked().await,
        )
        .await;
        let answers = (
            server.get("/flows/F/runs?status=failed").await,
            server.get("/flows/F/runs/1/status").await,
        );
        unlock(&blocker).await;
        answers
    };
    let (first, (second, third)) = tokio::join!(waiting, others);
    assert_eq!(first.code, 200);
    for (path, answer) in [(runs, second), (status, third)] {
        assert_eq!(
            (answer.code, answer.header("retry-after")),
            (503, Some("1"))
        );
        check.described(path, &answer);
    }
}
