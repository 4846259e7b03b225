//! `GET /flows/{flow_id}/runs/{run}/status`: why a run has its status, as `explain --json` prints
//! it.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use tokio_postgres::types::Type;

use super::admission::WhenFull;
use super::error::ApiError;
use super::statement::Statement;
use super::{Api, REPLICA_AGE, json, replica_age};
use crate::store::{EXPLAIN, decode_explanation};

/// Answers with the explanation of one run.
pub(super) async fn explain(
    State(api): State<Arc<Api>>,
    Path((flow_id, run)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let reader = api.reader()?;
    let params = [&flow_id, &run].map(|text| (Box::new(text.clone()) as _, Type::TEXT));
    let statement = Statement::fixed(EXPLAIN, params.into());
    let rows = reader.query(WhenFull::Reject, &statement).await?;
    let answer = rows.first().map(decode_explanation).transpose();
    let answer = answer.map_err(|error| {
        tracing::warn!(
            error = crate::error::chain(&error),
            "status_indexer.explain returned an unexpected answer: run `migrate up`"
        );
        ApiError::unavailable("the indexer's functions are of another version")
    })?;
    let explanation = answer.flatten().ok_or_else(|| {
        ApiError::not_found(format!("run {run} of flow {flow_id} does not exist"))
    })?;
    let body = serde_json::to_vec(&explanation).expect("an explanation is JSON");
    let mut response = json(body);
    if let Some(age) = explanation.replica_age_secs {
        response.headers_mut().insert(REPLICA_AGE, replica_age(age));
    }
    Ok(response)
}
