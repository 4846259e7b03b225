//! The read API: the metadata service's own endpoint for runs, answered from the column.
//!
//! Owns the routes, their limits and their errors. Promises upstream's answers in upstream's form
//! (`filter` and `cursor` read what upstream reads), values that reach the database only as
//! parameters (`statement`), and reads that never get in the way of the indexer (`reader` has
//! connections of its own). Served by [`crate::http`]; never writes.

mod cursor;
mod error;
mod filter;
mod openapi;
mod params;

mod reader;
mod run_status;
mod runs;
mod statement;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, Response, Uri};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use error::ApiError;
use params::{MAX_PATH, MAX_QUERY, decode};
use reader::ReadError;
pub use reader::{Limits, Reader};

/// The version by which the Metaflow client knows what the service can do.
const VERSION_HEADER: HeaderName = HeaderName::from_static("metadata_service_version");

/// The API; its reader comes once the database has answered for the first time.
#[derive(Debug)]
pub struct Api {
    /// What every path begins with: empty, or `/` and a name, without a `/` at its end.
    prefix: String,
    version: HeaderValue,
    openapi: String,
    reader: OnceLock<Reader>,
    stop: CancellationToken,
    metrics: Metrics,
}

/// What a request's path leads to.
enum Route {
    Runs(String),
    RunStatus(String, String),
    OpenApi,
}

impl Route {
    /// Its name in metrics.
    fn name(&self) -> &'static str {
        match self {
            Self::Runs(_) => "runs",
            Self::RunStatus(..) => "run_status",
            Self::OpenApi => "openapi",
        }
    }
}

impl Api {
    /// An API that answers 503 until it is given a reader.
    #[must_use]
    pub fn new(
        prefix: String,
        version: HeaderValue,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            openapi: openapi::document(&prefix),
            prefix,
            version,
            reader: OnceLock::new(),
            stop,
            metrics,
        })
    }

    /// Gives it its way to the database.
    pub fn open(&self, reader: Reader) {
        // There is one start, and so one reader.
        let _ = self.reader.set(reader);
    }

    /// Its routes, for the listener.
    pub fn routes(self: &Arc<Self>) -> Router {
        Router::new().fallback(answer).with_state(Arc::clone(self))
    }

    /// Closes its connections.
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

    /// Finds the route of a path as it was sent: escapes are undone within its parts, so that a
    /// flow's name may hold a `/`. None where there is none.
    fn route(&self, path: &str) -> Option<Result<Route, ApiError>> {
        let rest = path.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        let parts: Vec<&str> = rest.split('/').collect();
        if parts.contains(&"") {
            return None;
        }
        match parts[..] {
            ["openapi.json"] => Some(Ok(Route::OpenApi)),
            ["flows", flow, "runs"] => Some(decode(flow, false).map(Route::Runs)),
            ["flows", flow, "runs", run, "status"] => Some(
                decode(flow, false)
                    .and_then(|flow| Ok(Route::RunStatus(flow, decode(run, false)?))),
            ),
            _ => None,
        }
    }
}

async fn answer(State(api): State<Arc<Api>>, request: Request) -> Response<Body> {
    let started = Instant::now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let (name, outcome) = dispatch(&api, &method, &uri).await;
    let mut response = outcome.unwrap_or_else(Into::into);
    response
        .headers_mut()
        .insert(VERSION_HEADER, api.version.clone());
    api.metrics
        .http_requests_total
        .with_label_values(&[name, response.status().as_str()])
        .inc();
    api.metrics
        .http_request_duration_seconds
        .with_label_values(&[name])
        .observe(started.elapsed().as_secs_f64());
    response
}

async fn dispatch(
    api: &Arc<Api>,
    method: &Method,
    uri: &Uri,
) -> (&'static str, Result<Response<Body>, ApiError>) {
    let query = uri.query().unwrap_or_default();
    if uri.path().len() > MAX_PATH {
        return ("other", Err(ApiError::long("path", MAX_PATH)));
    }
    let route = match api.route(uri.path()) {
        None => return ("other", Err(ApiError::absent("there is nothing here"))),
        Some(Err(problem)) => return ("other", Err(problem)),
        Some(Ok(route)) => route,
    };
    let name = route.name();
    if method != Method::GET {
        return (name, Err(ApiError::method()));
    }
    if query.len() > MAX_QUERY {
        return (name, Err(ApiError::long("query", MAX_QUERY)));
    }
    let outcome = match route {
        Route::Runs(flow_id) => runs::list(api, flow_id, query).await,
        Route::RunStatus(flow_id, run) => match api.reader() {
            Ok(reader) => run_status::tell(reader, &flow_id, &run).await,
            Err(problem) => Err(problem),
        },
        Route::OpenApi => Ok(openapi::answer(&api.openapi)),
    };
    (name, outcome)
}

/// What a read that failed is to the client.
fn api_error(error: ReadError) -> ApiError {
    match error {
        ReadError::Busy => ApiError::busy(),
        ReadError::Slow => ApiError::unavailable("the database took too long: narrow the filter"),
        ReadError::Value => ApiError::bad("a filter's value cannot be compared with its field"),
        ReadError::Database => ApiError::unavailable("the database does not answer"),
    }
}
