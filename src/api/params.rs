//! Decodes a request's path and query, within limits.
//!
//! Stricter than most decoders of forms: malformed escapes, NUL bytes and bytes that are not UTF-8
//! are errors, because a filter that silently changes returns the wrong list.

use super::error::ApiError;
use crate::percent;

/// Bytes of a path.
pub(super) const MAX_PATH: usize = 8 * 1024;
/// Bytes of a query.
pub(super) const MAX_QUERY: usize = 16 * 1024;
/// Parameters of a query.
pub(super) const MAX_PARAMS: usize = 100;
/// Values of all filters of a query, separated by commas.
pub(super) const MAX_VALUES: usize = 1000;

/// The parameters of a query, decoded, in their order.
#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Splits at `&`, then at the first `=`; a parameter without one has an empty value.
    pub(super) fn read(query: &str) -> Result<Self, ApiError> {
        let pairs: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).collect();
        if pairs.len() > MAX_PARAMS {
            return Err(ApiError::bad_request(format!(
                "too many parameters: the limit is {MAX_PARAMS}"
            )));
        }
        pairs
            .into_iter()
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((decode_form(key)?, decode_form(value)?))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The first value of a name. Upstream uses the first one too.
    pub(super) fn first(&self, name: &str) -> Option<&str> {
        self.iter()
            .find_map(|(key, value)| (key == name).then_some(value))
    }

    /// All parameters: name and value.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// Checks that every segment of a path can be decoded.
///
/// The router decodes the segments too, but accepts malformed escapes.
pub(super) fn check_path(path: &str) -> Result<(), ApiError> {
    path.split('/')
        .try_for_each(|segment| decode(segment).map(drop))
}

/// Decodes a name or value of a query, in which `+` is a space.
fn decode_form(text: &str) -> Result<String, ApiError> {
    decode(&text.replace('+', " "))
}

fn decode(text: &str) -> Result<String, ApiError> {
    let bytes =
        percent::decode(text).ok_or_else(|| ApiError::bad_request("malformed percent-encoding"))?;
    if bytes.contains(&0) {
        return Err(ApiError::bad_request("NUL bytes are not allowed"));
    }
    String::from_utf8(bytes)
        .map_err(|_| ApiError::bad_request("percent-encoding that is not UTF-8"))
}

/// Parses an integer as upstream does: a sign, and spaces around it, are allowed.
pub(super) fn integer(text: &str) -> Option<i64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_and_malformed_ones_rejected() {
        for (text, decoded) in [
            ("a%2Fb", "a/b"),
            ("%C3%bc+x", "ü x"),
            ("%2B", "+"),
            ("", ""),
        ] {
            assert_eq!(decode_form(text).ok().as_deref(), Some(decoded), "{text}");
        }
        for text in ["%", "%1", "%zz", "%+1", "%ff", "%00", "a%C3"] {
            assert!(decode_form(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_segment_of_a_path_is_checked() {
        for path in ["/flows/a%2Fb/runs", "/flows/a+b/runs", "/"] {
            assert!(check_path(path).is_ok(), "{path}");
        }
        for path in ["/flows/%zz/runs", "/flows/F/runs/%00", "/flows/%c3/%28"] {
            assert!(check_path(path).is_err(), "{path}");
        }
    }

    #[test]
    fn the_first_value_of_a_repeated_name_is_used() {
        let params = Params::read("a=1&&a=2&b&c=x=y").expect("well formed");
        assert_eq!(params.first("a"), Some("1"));
        assert_eq!(params.first("b"), Some(""));
        assert_eq!(params.first("c"), Some("x=y"));
        assert_eq!(params.first("d"), None);
    }
}
