//! `GET /flows/{flow_id}/runs/{run}/status`: why one run has its status, as `explain --json` says.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response};
use tokio_postgres::types::{Json, Type};

use super::api_error;
use super::error::ApiError;
use super::reader::{Patience, Reader};
use super::statement::{Plan, Statement};
use crate::store::{EXPLAIN, Explanation};

/// Answers.
pub(super) async fn tell(
    reader: &Reader,
    flow_id: &str,
    run: &str,
) -> Result<Response<Body>, ApiError> {
    let statement = |_: &str| Statement {
        sql: EXPLAIN.to_owned(),
        params: vec![
            (Box::new(flow_id.to_owned()), Type::TEXT),
            (Box::new(run.to_owned()), Type::TEXT),
        ],
        plan: Plan::ByValue,
    };
    let rows = reader
        .query(Patience::Short, statement)
        .await
        .map_err(api_error)?;
    let answer: Option<Json<Explanation>> = rows
        .first()
        .and_then(|row| row.try_get(0).transpose())
        .transpose()
        .map_err(|error| {
            tracing::warn!(
                error = crate::error::chain(&error),
                "explain answered in an unexpected form"
            );
            ApiError::unavailable("the indexer's functions are of another version")
        })?;
    let Some(Json(explanation)) = answer else {
        return Err(ApiError::absent(format!(
            "there is no run {run} of the flow {flow_id}"
        )));
    };
    let body = serde_json::to_vec(&explanation).expect("an explanation is JSON");
    let mut response = Response::new(Body::from(body));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
