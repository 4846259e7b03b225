//! The two listeners: one for operators (`/metrics`, `/healthz`, `/readyz`, and a page at `/` for
//! people), one for readers (the [`crate::api`]).
//!
//! What operators ask is answered from memory alone, so that a database that is away never holds
//! up a probe. Promises that a client that does not take its answer never holds up a shutdown.

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
use axum::serve::ListenerExt as _;
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
    serve(bound, routes, stop).await
}

/// Serves any routes until `stop`.
///
/// # Errors
/// If accepting connections fails for good.
pub async fn serve(bound: Bound, routes: Router, stop: CancellationToken) -> anyhow::Result<()> {
    // An answer is often two small writes, and the second must not wait for the client's
    // acknowledgement of the first.
    let listener = bound.listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(error = %error, "a connection is gone before it was served");
        }
    });
    let serving = axum::serve(listener, routes)
        .with_graceful_shutdown(stop.clone().cancelled_owned())
        .into_future();
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        served = serving => served.context("a listener failed"),
        // Somebody has connected and not finished asking, or does not take the answer.
        () = overdue => Ok(()),
    }
}

async fn scrape(State(metrics): State<Metrics>) -> impl IntoResponse {
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        metrics.render(),
    )
}
