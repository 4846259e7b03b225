//! The two HTTP listeners: one for operators (`/metrics`, `/healthz`, `/readyz` and the status page at
//! `/`), one for the read API ([`crate::api`]).
//!
//! Operators' requests are answered from memory alone, so an unavailable database never delays a
//! probe. Promises that a client which does not read its answer never delays a shutdown. Called by
//! the daemon.

mod format;
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

/// How long open requests may take after the signal to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// A listener that is bound but not served yet, so that an address in use fails the start.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    /// Its address; with port 0, the port that the system chose.
    pub addr: SocketAddr,
}

/// Binds a listener.
///
/// # Errors
/// If the address cannot be bound.
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
/// If the listener fails.
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

/// Serves routes until `stop`.
///
/// # Errors
/// If the listener fails.
pub async fn serve(bound: Bound, routes: Router, stop: CancellationToken) -> anyhow::Result<()> {
    // An answer is often two small writes. With Nagle's algorithm the second would wait for the
    // client's acknowledgement of the first.
    let listener = bound.listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(error = %error, "a connection was closed before it was served");
        }
    });
    let serving = axum::serve(listener, routes)
        .with_graceful_shutdown(stop.clone().cancelled_owned())
        .into_future();
    let drain_timeout = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    tokio::select! {
        served = serving => served.context("an HTTP listener failed"),
        // A client has not sent its whole request, or does not read the answer.
        () = drain_timeout => Ok(()),
    }
}

async fn scrape(State(metrics): State<Metrics>) -> impl IntoResponse {
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        metrics.render(),
    )
}
