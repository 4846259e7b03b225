//! HTTP for operators: `/metrics`, `/healthz`, `/readyz` and a page at `/` for people, on a listener
//! of its own.
//!
//! Answers from memory alone, so that a database that is away never holds up a probe.

mod health;
mod page;

use std::future::IntoFuture as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// How long answers under way may take after the signal to stop.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A listener that is bound, and not served yet: an address that is taken stops the start.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    /// Where it listens; with port 0, the one that the system chose.
    pub addr: SocketAddr,
}

/// Binds a listener.
///
/// # Errors
/// If the address cannot be had.
pub async fn bind(addr: SocketAddr) -> anyhow::Result<Bound> {
    let listener = TcpListener::bind(addr)
        .await
        .with_context(|| format!("cannot listen on {addr}"))?;
    let addr = listener
        .local_addr()
        .context("a bound socket has an address")?;
    Ok(Bound { listener, addr })
}

/// Serves the operators' routes until `stop`.
///
/// # Errors
/// If accepting connections fails for good.
pub async fn serve_metrics(
    bound: Bound,
    metrics: Metrics,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let routes = Router::new()
        .route("/", get(page::show))
        .route("/metrics", get(scrape))
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .with_state(metrics);
    let serving = axum::serve(bound.listener, routes)
        .with_graceful_shutdown(stop.clone().cancelled_owned())
        .into_future();
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        served = serving => served.context("the metrics listener failed"),
        // Somebody has connected and not finished asking.
        () = overdue => Ok(()),
    }
}

async fn scrape(State(metrics): State<Metrics>) -> impl IntoResponse {
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        metrics.render(),
    )
}
