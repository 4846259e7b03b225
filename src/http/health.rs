//! The probes: `/healthz` succeeds while the process runs, `/readyz` while the column can be relied on.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::json;

use crate::metrics::Metrics;

pub(super) async fn alive() -> &'static str {
    "alive\n"
}

/// Reads the gauges of `/metrics`, so both always agree.
pub(super) async fn ready(State(metrics): State<Metrics>) -> impl IntoResponse {
    let mut missing = Vec::new();
    if metrics.up.get() == 0 {
        missing.push("the database does not answer");
    }
    if metrics.valid.get() == 0 {
        missing.push("the column is not valid: the backfill is not complete");
    }
    let code = if missing.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({
        "ready": missing.is_empty(),
        "leader": metrics.leader.get() == 1,
        "missing": missing,
    });
    (code, Json(body))
}
