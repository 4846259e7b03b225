//! The read API: the metadata service's endpoint for runs, answered from the column.
//!
//! Owns the routes, the limits on requests and their errors. Promises answers in upstream's form
//! (`filter` and `cursor` read what upstream reads), values that reach the database only as
//! parameters (`selection`), and reads that never delay the indexer (`reader` has its own
//! connections). Served by [`crate::http`]. Never writes.

mod admission;
mod budget;
mod cursor;
mod error;
mod filter;
mod listing;
mod openapi;
mod params;
mod reader;
mod run_row;
mod run_status;
mod runs;
mod selection;
mod statement;
mod stream;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use tokio_util::sync::CancellationToken;

pub use admission::Limits;
pub use reader::Reader;

use crate::http::Access;
use crate::metrics::{Metrics, REFUSED_TOKEN};
use budget::Budget;
use error::{ApiError, LimitReached};

/// The header from which the Metaflow client determines what the service supports.
const VERSION_HEADER: HeaderName = HeaderName::from_static("metadata_service_version");

/// How old a replica's data is at most, seconds.
const REPLICA_AGE: HeaderName = HeaderName::from_static("x-replica-age");

const RUNS: &str = "/flows/{flow_id}/runs";
const RUN_STATUS: &str = "/flows/{flow_id}/runs/{run}/status";
const OPENAPI: &str = "/openapi.json";

/// The label of a request without a route.
const OTHER: &str = "other";

/// The API. It is served from the start of the process and gets its reader once the database has
/// answered for the first time.
#[derive(Debug)]
pub struct Api {
    /// The beginning of every path: empty, or `/` and a name, without a `/` at its end.
    prefix: String,
    version: HeaderValue,
    openapi: String,
    reader: OnceLock<Reader>,
    access: Access,
    /// For the chunks of lists.
    lists: Budget,
    /// For pages.
    pages: Budget,
    /// Whether the column sufficed for the last page by status.
    column_suffices: AtomicBool,
    stop: CancellationToken,
    metrics: Metrics,
}

impl Api {
    /// An API that answers 503 until [`Self::open`] gives it a reader.
    #[must_use]
    pub fn new(
        prefix: String,
        version: HeaderValue,
        access: Access,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            openapi: openapi::document(&prefix, access.needs_token()),
            prefix,
            version,
            reader: OnceLock::new(),
            access,
            lists: Budget::new(stream::BUDGET),
            pages: Budget::new(runs::BUDGET),
            column_suffices: AtomicBool::new(true),
            stop,
            metrics,
        })
    }

    /// Sets the reader.
    pub fn open(&self, reader: Reader) {
        // The daemon starts once, so a second reader does not occur.
        let _ = self.reader.set(reader);
    }

    /// The routes, under the prefix.
    pub fn routes(self: &Arc<Self>) -> Router {
        // `check` rejects every method but GET before a handler runs; `get` would also serve HEAD.
        let routes = Router::new()
            .route(RUNS, any(runs::list))
            .route(RUN_STATUS, any(run_status::explain))
            .route(OPENAPI, any(openapi::answer));
        let mounted = match self.prefix.as_str() {
            "" => routes,
            prefix => Router::new().nest(prefix, routes),
        };
        mounted
            .fallback(not_found)
            .layer(from_fn_with_state(Arc::clone(self), answer))
            .with_state(Arc::clone(self))
    }

    /// Closes the connections.
    pub fn close(&self) {
        if let Some(reader) = self.reader.get() {
            reader.close();
        }
    }

    fn reader(&self) -> Result<&Reader, ApiError> {
        self.reader
            .get()
            .ok_or_else(|| ApiError::unavailable("the database has not answered yet"))
    }

    /// Whether the request has a token, if it needs one.
    fn authorize(&self, request: &Request) -> Result<(), ApiError> {
        self.access.check(request.headers()).map_err(|refusal| {
            let refused = &self.metrics.http_refused_total;
            refused.with_label_values(&["api", REFUSED_TOKEN]).inc();
            ApiError::unauthorized(refusal)
        })
    }

    /// The checks that all routes share, and the request's label in metrics. A path that is too
    /// long, or has a segment that is empty or malformed, counts as a request without a route.
    fn check(
        &self,
        matched: Option<&MatchedPath>,
        request: &Request,
    ) -> (&'static str, Result<(), ApiError>) {
        let (path, query) = (request.uri().path(), request.uri().query());
        if path.len() > params::MAX_PATH {
            return (OTHER, Err(ApiError::too_long("path", params::MAX_PATH)));
        }
        let route = self.label(matched);
        if route == OTHER {
            return (OTHER, Ok(()));
        }
        // The router takes an empty segment for a value.
        if path
            .strip_prefix(&self.prefix)
            .unwrap_or(path)
            .contains("//")
        {
            return (OTHER, Err(path_not_found()));
        }
        if let Err(error) = params::check_path(path) {
            return (OTHER, Err(error));
        }
        if request.method() != Method::GET {
            return (route, Err(ApiError::method_not_allowed()));
        }
        if query.unwrap_or_default().len() > params::MAX_QUERY {
            return (route, Err(ApiError::too_long("query", params::MAX_QUERY)));
        }
        (route, Ok(()))
    }

    fn label(&self, matched: Option<&MatchedPath>) -> &'static str {
        let path = matched.and_then(|path| path.as_str().strip_prefix(&self.prefix));
        match path {
            Some(RUNS) => "runs",
            Some(RUN_STATUS) => "run_status",
            Some(OPENAPI) => "openapi",
            _ => OTHER,
        }
    }
}

/// Wraps every request: checks it, and adds to the answer what all answers have in common.
async fn answer(
    State(api): State<Arc<Api>>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let (route, checked) = api.check(matched.as_ref(), &request);
    // A client without a token learns nothing else, not even whether a path exists.
    let mut response = match api.authorize(&request).and(checked) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    response
        .headers_mut()
        .insert(VERSION_HEADER, api.version.clone());
    api.metrics
        .http_requests_total
        .with_label_values(&[route, response.status().as_str()])
        .inc();
    if let Some(LimitReached(limit)) = response.extensions().get() {
        api.metrics
            .http_requests_rejected_total
            .with_label_values(&[limit])
            .inc();
    }
    api.metrics
        .http_request_duration_seconds
        .with_label_values(&[route])
        .observe(started.elapsed().as_secs_f64());
    response
}

async fn not_found() -> ApiError {
    path_not_found()
}

fn path_not_found() -> ApiError {
    ApiError::not_found("this path does not exist")
}

/// An answer with a body of JSON.
fn json(body: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, "application/json")], body.into()).into_response()
}

/// The value of the header [`REPLICA_AGE`].
fn replica_age(secs: f64) -> HeaderValue {
    HeaderValue::try_from(format!("{secs:.3}")).expect("a number is visible ASCII")
}

#[cfg(test)]
mod tests;
