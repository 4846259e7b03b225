//! An answer that is not what was asked for: a code, and a reason on one line.
//!
//! The body is a JSON string, as upstream's are, and never holds the database's own text.

use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Response, StatusCode};

/// What to answer instead.
#[derive(Debug)]
pub(super) struct Problem {
    code: StatusCode,
    reason: String,
    retry_after: bool,
}

impl Problem {
    fn new(code: StatusCode, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            retry_after: false,
        }
    }

    /// The request is at fault.
    pub(super) fn bad(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    /// There is no such thing.
    pub(super) fn absent(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, reason)
    }

    /// Only GET is served.
    pub(super) fn method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed here")
    }

    /// The path or query is longer than is read.
    pub(super) fn long(what: &str, limit: usize) -> Self {
        Self::new(
            StatusCode::URI_TOO_LONG,
            format!("the {what} is longer than {limit} bytes"),
        )
    }

    /// It cannot be told now.
    pub(super) fn unavailable(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason)
    }

    /// Too many ask at once.
    pub(super) fn busy() -> Self {
        Self {
            retry_after: true,
            ..Self::unavailable("too many requests are waiting for the database")
        }
    }
}

impl From<Problem> for Response<Body> {
    fn from(problem: Problem) -> Self {
        let body = serde_json::to_vec(&problem.reason).expect("a string is JSON");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = problem.code;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if problem.code == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET"));
        }
        if problem.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
