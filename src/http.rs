//! The two HTTP listeners: one for operators (`/metrics`, `/healthz`, `/readyz` and the status page at
//! `/`), one for the read API ([`crate::api`]).
//!
//! Operators' requests are answered from memory alone, so an unavailable database never delays a
//! probe. Promises that clients never harm the indexer: each listener has limits on the number of its
//! connections and on the time that they may take ([`Limits`]). Each listener may have a certificate and
//! tokens ([`Access`]). Called by the daemon.

mod access;
mod activity;
mod descriptors;
mod format;
mod health;
mod listener;
mod page;
mod server;
mod transport;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio_util::sync::CancellationToken;

pub(crate) use access::Refusal;
pub use access::{Access, AccessFiles, follow};
pub use descriptors::{Connections, connections};
pub use listener::{Bound, bind};
pub use server::{Limits, serve};

use crate::metrics::{Metrics, REFUSED_TOKEN};

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
        .layer(from_fn_with_state(
            (bound.access.clone(), metrics.clone()),
            guard,
        ))
        .with_state(metrics.clone());
    serve(bound, routes, limits, metrics, stop).await;
}

/// The probes of an orchestrator, which cannot send a token. Their answers contain no data.
const PROBES: [&str; 2] = ["/healthz", "/readyz"];

/// Refuses a request that needs a token and has none.
async fn guard(
    State((access, metrics)): State<(Access, Metrics)>,
    request: Request,
    next: Next,
) -> Response {
    if !PROBES.contains(&request.uri().path())
        && let Err(refusal) = access.check(request.headers())
    {
        let refused = &metrics.http_refused_total;
        refused.with_label_values(&["metrics", REFUSED_TOKEN]).inc();
        let text = format!("{}\n", refusal.reason());
        return (StatusCode::UNAUTHORIZED, [refusal.challenge()], text).into_response();
    }
    next.run(request).await
}

async fn scrape(State(metrics): State<Metrics>) -> impl IntoResponse {
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        metrics.render(),
    )
}
