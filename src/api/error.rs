//! The error answer of a request: a status code, and a reason on one line.
//!
//! The body is a JSON string, as upstream's are. It never contains text from the database.

use axum::http::header::{ALLOW, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::json;
use crate::http::Refusal;
use crate::metrics::{MEMORY_LIMIT, READS_LIMIT};

/// The reason of an error answer.
#[derive(Debug)]
pub(super) struct ApiError {
    code: StatusCode,
    reason: String,
    /// How a client authenticates.
    challenge: Option<(HeaderName, HeaderValue)>,
    /// The limit that was reached, if the same request may succeed in a moment.
    limit: Option<LimitReached>,
}

/// The limit that an answer with the code 503 is due to, as its label in metrics.
#[derive(Debug, Clone, Copy)]
pub(super) struct LimitReached(pub(super) &'static str);

impl ApiError {
    fn new(code: StatusCode, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            challenge: None,
            limit: None,
        }
    }

    /// 401: the request has no valid token.
    pub(super) fn unauthorized(refusal: Refusal) -> Self {
        Self {
            challenge: Some(refusal.challenge()),
            ..Self::new(StatusCode::UNAUTHORIZED, refusal.reason())
        }
    }

    /// 400: the request is invalid.
    pub(super) fn bad_request(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    /// 404: the path, or the run that it names, does not exist.
    pub(super) fn not_found(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, reason)
    }

    /// 405: every route supports only GET.
    pub(super) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "only GET is supported")
    }

    /// 414: the path or the query exceeds its limit.
    pub(super) fn too_long(what: &str, limit: usize) -> Self {
        Self::new(
            StatusCode::URI_TOO_LONG,
            format!("the {what} is longer than {limit} bytes"),
        )
    }

    /// 400: the answer would be too large. In bytes.
    pub(super) fn too_large(limit: usize) -> Self {
        Self::bad_request(format!(
            "the page is larger than {} MiB: use a smaller _limit",
            limit / (1024 * 1024)
        ))
    }

    /// 503: the database cannot answer the request now.
    pub(super) fn unavailable(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason)
    }

    /// 503 with `Retry-After`: the limit on concurrent reads is reached.
    pub(super) fn busy() -> Self {
        Self::retry(
            READS_LIMIT,
            "too many requests are waiting for the database",
        )
    }

    /// 503 with `Retry-After`: other answers, whose clients are perhaps slow, take all the memory.
    pub(super) fn slow_clients() -> Self {
        Self::retry(
            MEMORY_LIMIT,
            "other answers take all the memory that there is for them",
        )
    }

    fn retry(limit: &'static str, reason: &str) -> Self {
        Self {
            limit: Some(LimitReached(limit)),
            ..Self::unavailable(reason)
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json(ascii_json(&self.reason));
        *response.status_mut() = self.code;
        let headers = response.headers_mut();
        if self.code == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET"));
        }
        if let Some((name, value)) = self.challenge {
            headers.insert(name, value);
        }
        if let Some(limit) = self.limit {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            response.extensions_mut().insert(limit);
        }
        response
    }
}

/// A JSON string in ASCII, as upstream writes it: clients print an error's body as it is, with its
/// escapes.
fn ascii_json(text: &str) -> String {
    let json = serde_json::to_string(text).expect("a string is JSON");
    let mut ascii = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            ascii.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    use super::ascii_json;

    #[test]
    fn reasons_are_written_in_ascii_and_read_back_unchanged() {
        assert_eq!(ascii_json("say \"no\""), r#""say \"no\"""#);
        assert_eq!(ascii_json("Ü \u{1f642}"), r#""\u00dc \ud83d\ude42""#);
        let read: String = serde_json::from_str(&ascii_json("Ü \u{1f642}\n")).expect("JSON");
        assert_eq!(read, "Ü \u{1f642}\n");
    }
}
