//! The two HTTP listeners: one for operators (`/metrics`, `/healthz`, `/readyz` and the status page at
//! `/`), one for the read API ([`crate::api`]).
//!
//! Operators' requests are answered from memory alone, so an unavailable database never delays a
//! probe. Promises that clients never harm the indexer: each listener has limits on the number of its
//! connections and on the time that they may take ([`Limits`]). Called by the daemon.

mod activity;
mod descriptors;
mod format;
mod health;
mod listener;
mod page;
mod server;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio_util::sync::CancellationToken;

pub use descriptors::{Connections, connections};
pub use listener::{Bound, bind};
pub use server::{Limits, serve};

use crate::metrics::Metrics;

/// Serves the operators' routes until `stop`.
pub async fn serve_metrics(
    bound: Bound,
    limits: Limits,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let routes = Router::new()
        .route("/", get(page::show))
        .route("/metrics", get(scrape))
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .with_state(metrics.clone());
    serve(bound, routes, limits, metrics, stop).await;
}

async fn scrape(State(metrics): State<Metrics>) -> impl IntoResponse {
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        metrics.render(),
    )
}
