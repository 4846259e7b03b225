//! `/openapi.json`: the API described for machines, generated from what the handlers read.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response};
use serde_json::{Value, json};

use super::filter::{Field, Kind, Operator};
use super::params::{MAX_PARAMS, MAX_QUERY, MAX_VALUES};
use super::runs::{DEFAULT_LIMIT, MAX_LIMIT};
use crate::status::Status;

/// Answers.
pub(super) fn answer(document: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(document.to_owned()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The description, as JSON.
pub(super) fn document(prefix: &str) -> String {
    let server = if prefix.is_empty() { "/" } else { prefix };
    let document = json!({
        "openapi": "3.0.3",
        "info": {
            "title": "status-indexer read API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": format!(
                "The runs of a Metaflow flow, filtered by status among others, in the form of the metadata service. \
                 A query may have {MAX_QUERY} bytes, {MAX_PARAMS} parameters and {MAX_VALUES} filter values. \
                 Unknown parameters are ignored. Every error is a JSON string of one line."
            ),
        },
        "servers": [{ "url": server }],
        "paths": {
            "/flows/{flow_id}/runs": { "get": runs() },
            "/flows/{flow_id}/runs/{run}/status": { "get": run_status() },
            "/openapi.json": { "get": {
                "operationId": "openapi",
                "summary": "This description",
                "responses": {
                    "200": { "description": "This description", "content": content(json!({ "type": "object" })) },
                    "405": problem("A method other than GET"),
                    "414": problem("The query is too long"),
                },
            }},
        },
        "components": { "schemas": { "Run": run(), "Explanation": explanation() } },
    });
    document.to_string()
}

fn runs() -> Value {
    json!({
        "operationId": "runs",
        "summary": "The runs of a flow, newest first",
        "description": format!(
            "A page as soon as any filter, `_limit` or `_cursor` is given, otherwise all runs. \
             A filter is `field:operator=value`, by default with `eq`. A comma between values is OR, a repeated key is AND, \
             except that a repeated `status` is OR; the value `null` means that there is none. Only pages by `_cursor` are stable \
             while runs change. A page has {DEFAULT_LIMIT} runs unless `_limit` says otherwise, and at most {MAX_LIMIT}."
        ),
        "parameters": parameters(),
        "responses": {
            "200": {
                "description": "The runs; of an unknown flow, none",
                "headers": {
                    "METADATA_SERVICE_VERSION": { "schema": { "type": "string" } },
                    "X-Limit": { "description": "On a page: at most so many runs", "schema": { "type": "integer" } },
                    "X-Next-Cursor": { "description": "On a page: `_cursor` of the next one, if there is one", "schema": { "type": "string" } },
                },
                "content": content(json!({ "type": "array", "items": { "$ref": "#/components/schemas/Run" } })),
            },
            "400": problem("A filter, limit, offset or cursor that cannot be read, or bad percent-encoding"),
            "405": problem("A method other than GET"),
            "414": problem("The query is too long"),
            "503": unavailable("The database does not answer or is busy, or statuses cannot be told yet"),
        },
    })
}

fn run_status() -> Value {
    json!({
        "operationId": "run_status",
        "summary": "Why a run has its status, judged at this moment",
        "parameters": [
            path("flow_id", "The flow's name"),
            path("run", "The run's number, or its own id"),
        ],
        "responses": {
            "200": {
                "description": "What `status-indexer explain --json` says",
                "headers": { "METADATA_SERVICE_VERSION": { "schema": { "type": "string" } } },
                "content": content(json!({ "$ref": "#/components/schemas/Explanation" })),
            },
            "400": problem("Bad percent-encoding"),
            "404": problem("There is no such run"),
            "405": problem("A method other than GET"),
            "414": problem("The query is too long"),
            "503": unavailable("The database does not answer or is busy"),
        },
    })
}

fn path(name: &str, description: &str) -> Value {
    json!({
        "name": name, "in": "path", "required": true, "description": description,
        "schema": { "type": "string" },
    })
}

fn query(name: &str, description: &str, example: &str) -> Value {
    json!({
        "name": name, "in": "query", "required": false, "description": description,
        "schema": { "type": "string" }, "example": example,
    })
}

fn parameters() -> Vec<Value> {
    let mut all = vec![
        path("flow_id", "The flow's name"),
        query("_limit", "Runs of a page", "10"),
        query(
            "_cursor",
            "`X-Next-Cursor` of the page before",
            "eyJ0c19lcG9jaCI6IDAsICJydW5fbnVtYmVyIjogMH0=",
        ),
        query(
            "_offset",
            "Runs to leave out at the beginning; not together with `_cursor`",
            "1",
        ),
        query(
            "_tags",
            "Has all of these among its tags and system tags",
            "a,b",
        ),
        query(
            "_tags:all",
            "Has all of these among its tags and system tags",
            "a,b",
        ),
        query(
            "_tags:any",
            "Has any of these among its tags and system tags",
            "a,b",
        ),
        query(
            "_tags:likeany",
            "Any of these is in the text of its tags",
            "a,b",
        ),
        query(
            "_tags:likeall",
            "All of these are in the text of its tags",
            "a,b",
        ),
    ];
    for field in Field::ALL {
        all.push(query(
            field.name(),
            &format!("The same as `{}:eq`", field.name()),
            example(field, Operator::Eq),
        ));
        let operators = Operator::ALL.into_iter();
        all.extend(
            operators
                .filter(|operator| operator.fits(field.kind()))
                .map(|operator| {
                    query(
                        &format!("{}:{}", field.name(), operator.name()),
                        description(operator),
                        example(field, operator),
                    )
                }),
        );
    }
    all
}

fn description(operator: Operator) -> &'static str {
    match operator {
        Operator::Eq => "Equals",
        Operator::Ne => "Differs from",
        Operator::Lt => "Is less than",
        Operator::Le => "Is at most",
        Operator::Gt => "Is greater than",
        Operator::Ge => "Is at least",
        Operator::Contains => "Contains, whatever the case",
        Operator::StartsWith => "Starts with, whatever the case",
        Operator::EndsWith => "Ends with, whatever the case",
        Operator::Like => "Matches the pattern (`%`, `_`), whatever the case",
        Operator::Is => "Is null",
    }
}

fn example(field: Field, operator: Operator) -> &'static str {
    if operator == Operator::Is {
        return "null";
    }
    match (field.kind(), field) {
        (Kind::Status, _) => "failed,running",
        (Kind::Integer, Field::TsEpoch) => "1700000000000",
        (Kind::Integer, _) => "1700000000",
        (Kind::Json, _) => "[]",
        (Kind::Text, _) => "alice,bob",
    }
}

fn content(schema: Value) -> Value {
    json!({ "application/json": { "schema": schema } })
}

fn problem(description: &str) -> Value {
    json!({ "description": description, "content": content(json!({ "type": "string" })) })
}

fn unavailable(description: &str) -> Value {
    let mut problem = problem(description);
    problem["headers"] = json!({
        "Retry-After": { "description": "Seconds; where too many requests wait", "schema": { "type": "integer" } },
    });
    problem
}

fn statuses() -> Value {
    json!({ "type": "string", "enum": Status::ALL.map(Status::as_str) })
}

fn run() -> Value {
    let integer = json!({ "type": "integer", "format": "int64" });
    let tags = json!({ "type": "array", "items": { "type": "string" }, "nullable": true });
    json!({
        "type": "object",
        "required": ["flow_id", "run_number", "user_name", "ts_epoch", "tags", "system_tags", "last_heartbeat_ts"],
        "properties": {
            "flow_id": { "type": "string" },
            "run_number": {
                "description": "The run's own id where it has one, else its number",
                "oneOf": [{ "type": "string" }, { "type": "integer" }],
            },
            "user_name": { "type": "string", "nullable": true },
            "ts_epoch": integer,
            "tags": tags,
            "system_tags": tags,
            "last_heartbeat_ts": { "type": "integer", "format": "int64", "nullable": true },
            "status": statuses(),
            "user": { "type": "string", "description": "The user's name, where the system tags vouch for it" },
        },
    })
}

fn explanation() -> Value {
    json!({
        "type": "object",
        "required": ["flow_id", "run_number", "status", "reason", "finished_at", "evidence", "next_change_secs", "next_status"],
        "properties": {
            "flow_id": { "type": "string" },
            "run_number": { "type": "integer" },
            "run_id": { "type": "string", "nullable": true },
            "status": statuses(),
            "reason": { "type": "string", "description": "The rule that decided" },
            "finished_at": { "type": "integer", "nullable": true, "description": "Milliseconds since the epoch" },
            "stored": { "type": "string", "description": "What the column says" },
            "agrees": { "type": "boolean" },
            "valid": { "type": "boolean" },
            "queued": { "type": "boolean" },
            "evidence": { "type": "object" },
            "cutoff_secs": { "type": "integer" },
            "at_secs": { "type": "number", "description": "The database's clock" },
            "next_change_secs": { "type": "number", "nullable": true, "description": "When time alone changes the status" },
            "next_status": { "type": "string", "nullable": true },
        },
    })
}
