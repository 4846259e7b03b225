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

/// Reads the metrics, so that both always agree.
pub(super) async fn ready(State(metrics): State<Metrics>) -> impl IntoResponse {
    let missing = metrics.unmet();
    let code = if missing.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({
        "ready": missing.is_empty(),
        "leader": metrics.leader.get() == 1,
        "listen": metrics.listener_connected.get() == 1,
        "missing": missing,
    });
    (code, Json(body))
}
