//! An answer that is not what was asked for: a code, and a reason on one line.
//!
//! The body is a JSON string, as upstream's are to the letter, and never holds the database's own text.

use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Response, StatusCode};

/// What to answer instead.
#[derive(Debug)]
pub(super) struct ApiError {
    code: StatusCode,
    reason: String,
    retry_after: bool,
}

impl ApiError {
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

impl From<ApiError> for Response<Body> {
    fn from(problem: ApiError) -> Self {
        let mut response = Response::new(Body::from(ascii_json(&problem.reason)));
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

/// A JSON string in ASCII. Clients show the text of an error as it came, escapes and all, and upstream
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
    fn reasons_are_ascii_and_the_same_text() {
        assert_eq!(ascii_json("say \"no\""), r#""say \"no\"""#);
        assert_eq!(ascii_json("Ü \u{1f642}"), r#""\u00dc \ud83d\ude42""#);
        let read: String = serde_json::from_str(&ascii_json("Ü \u{1f642}\n")).expect("JSON");
        assert_eq!(read, "Ü \u{1f642}\n");
    }
}
