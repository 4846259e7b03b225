//! `/openapi.json`: the OpenAPI description, generated from the same lists that the handlers use.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::filter::{Field, Kind, Operator};
use super::listing::{DEFAULT_LIMIT, MAX_LIMIT};
use super::params::{MAX_PARAMS, MAX_QUERY, MAX_VALUES};
use super::{Api, OPENAPI, RUN_STATUS, RUNS};
use crate::status::Status;

/// Answers with the description.
pub(super) async fn answer(State(api): State<Arc<Api>>) -> Response {
    super::json(api.openapi.clone())
}

/// The description as JSON, of an API that needs a token or does not.
pub(super) fn document(prefix: &str, needs_token: bool) -> String {
    let server = if prefix.is_empty() { "/" } else { prefix };
    let mut document = json!({
        "openapi": "3.0.3",
        "info": {
            "title": "status-indexer read API",
            "version": crate::version::VERSION,
            "description": format!(
                "The runs of a Metaflow flow, filtered by status and other fields, in the metadata service's format. \
                 A query has at most {MAX_QUERY} bytes, {MAX_PARAMS} parameters and {MAX_VALUES} filter values. \
                 Unknown parameters are ignored. The body of an error is a JSON string of one line."
            ),
        },
        "servers": [{ "url": server }],
        "paths": {
            RUNS: { "get": runs() },
            RUN_STATUS: { "get": run_status() },
            OPENAPI: { "get": {
                "operationId": "openapi",
                "summary": "This description",
                "responses": {
                    "200": { "description": "This description", "content": content(json!({ "type": "object" })) },
                    "405": error("A method other than GET"),
                    "414": error("The query is too long"),
                },
            }},
        },
        "components": { "schemas": { "Run": run(), "Explanation": explanation() } },
    });
    if needs_token {
        require_token(&mut document);
    }
    document.to_string()
}

fn require_token(document: &mut Value) {
    document["security"] = json!([{ "token": [] }]);
    document["components"]["securitySchemes"] =
        json!({ "token": { "type": "http", "scheme": "bearer" } });
    let paths = document["paths"].as_object_mut();
    for path in paths.into_iter().flat_map(|paths| paths.values_mut()) {
        path["get"]["responses"]["401"] = error("The request has no valid token");
    }
}

fn runs() -> Value {
    json!({
        "operationId": "runs",
        "summary": "The runs of a flow, newest first",
        "description": format!(
            "Returns a page if any filter, `_limit` or `_cursor` is given, otherwise all runs. \
             A filter is `field:operator=value`; the default operator is `eq`. A comma between values is OR, a repeated key is AND, \
             but a repeated `status` is OR. The value `null` matches a field without a value. Only pages by `_cursor` are stable \
             while runs change. A page has up to {DEFAULT_LIMIT} runs by default and up to {MAX_LIMIT} with `_limit`."
        ),
        "parameters": parameters(),
        "responses": {
            "200": {
                "description": "The runs; an empty array for an unknown flow",
                "headers": {
                    "METADATA_SERVICE_VERSION": { "schema": { "type": "string" } },
                    "X-Limit": { "description": "Pages only: the largest number of runs", "schema": { "type": "integer" } },
                    "X-Next-Cursor": { "description": "Pages only: the `_cursor` of the next page, if there is one", "schema": { "type": "string" } },
                    "X-Replica-Age": replica_age(),
                },
                "content": content(json!({ "type": "array", "items": { "$ref": "#/components/schemas/Run" } })),
            },
            "400": error("Invalid filter, limit, offset or cursor, or malformed percent-encoding"),
            "405": error("A method other than GET"),
            "414": error("The query is too long"),
            "503": unavailable("The database does not answer or is busy, or the query filters on status while the column is not valid"),
        },
    })
}

fn run_status() -> Value {
    json!({
        "operationId": "run_status",
        "summary": "Why a run has its status, evaluated now",
        "parameters": [
            path("flow_id", "The flow's name"),
            path("run", "The run's number or its `run_id`"),
        ],
        "responses": {
            "200": {
                "description": "The output of `status-indexer explain --json`",
                "headers": {
                    "METADATA_SERVICE_VERSION": { "schema": { "type": "string" } },
                    "X-Replica-Age": replica_age(),
                },
                "content": content(json!({ "$ref": "#/components/schemas/Explanation" })),
            },
            "400": error("Malformed percent-encoding"),
            "404": error("The run does not exist"),
            "405": error("A method other than GET"),
            "414": error("The query is too long"),
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
        query("_limit", "The largest number of runs of a page", "10"),
        query(
            "_cursor",
            "`X-Next-Cursor` of the previous page",
            "eyJ0c19lcG9jaCI6IDAsICJydW5fbnVtYmVyIjogMH0=",
        ),
        query(
            "_offset",
            "Runs to skip; cannot be combined with `_cursor`",
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
            "The text of its tags contains any of these",
            "a,b",
        ),
        query(
            "_tags:likeall",
            "The text of its tags contains all of these",
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
        Operator::Contains => "Contains, ignoring case",
        Operator::StartsWith => "Starts with, ignoring case",
        Operator::EndsWith => "Ends with, ignoring case",
        Operator::Like => "Matches the ILIKE pattern (`%`, `_`)",
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

fn error(description: &str) -> Value {
    json!({ "description": description, "content": content(json!({ "type": "string" })) })
}

fn unavailable(description: &str) -> Value {
    let mut error = error(description);
    error["headers"] = json!({
        "Retry-After": { "description": "In seconds; set if too many requests are waiting", "schema": { "type": "integer" } },
    });
    error
}

fn replica_age() -> Value {
    json!({
        "description": "Statuses read from a replica only: how old its data is at most, in seconds",
        "schema": { "type": "number" },
    })
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
                "description": "The run's `run_id` if it has one, otherwise its number",
                "oneOf": [{ "type": "string" }, { "type": "integer" }],
            },
            "user_name": { "type": "string", "nullable": true },
            "ts_epoch": integer,
            "tags": tags,
            "system_tags": tags,
            "last_heartbeat_ts": { "type": "integer", "format": "int64", "nullable": true },
            "status": statuses(),
            "user": { "type": "string", "description": "The user's name, if the system tags contain it" },
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
            "stored": { "type": "string", "description": "The stored status" },
            "agrees": { "type": "boolean" },
            "valid": { "type": "boolean" },
            "queued": { "type": "boolean" },
            "evidence": { "type": "object" },
            "cutoff_secs": { "type": "integer" },
            "at_secs": { "type": "number", "description": "The database's clock, seconds since the epoch" },
            "replica_age_secs": { "type": "number", "nullable": true, "description": "On a replica: how old its data is at most" },
            "next_change_secs": { "type": "number", "nullable": true, "description": "When time alone changes the status, seconds since the epoch" },
            "next_status": { "type": "string", "nullable": true },
        },
    })
}
