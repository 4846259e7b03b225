//! Reads a request's path and query as text, within limits, or says what is wrong with them.
//!
//! Stricter than most readers of forms: a malformed escape, bytes that are no UTF-8 and a NUL are
//! refused, because what a filter silently becomes is a wrong list.

use super::error::ApiError;

/// Bytes of a path.
pub(super) const MAX_PATH: usize = 8 * 1024;
/// Bytes of a query.
pub(super) const MAX_QUERY: usize = 16 * 1024;
/// Parameters of a query.
pub(super) const MAX_PARAMS: usize = 100;
/// Values of all filters of a query, counted between their commas.
pub(super) const MAX_VALUES: usize = 1000;

/// The parameters of a query, decoded, in their order.
#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Splits at `&`, then at the first `=`; a parameter without one has an empty value.
    pub(super) fn read(query: &str) -> Result<Self, ApiError> {
        let pairs: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).collect();
        if pairs.len() > MAX_PARAMS {
            return Err(ApiError::bad(format!(
                "too many parameters: at most {MAX_PARAMS} are read"
            )));
        }
        pairs
            .into_iter()
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((decode(key, true)?, decode(value, true)?))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The first value of a name, as upstream takes it.
    pub(super) fn first(&self, name: &str) -> Option<&str> {
        self.iter()
            .find_map(|(key, value)| (key == name).then_some(value))
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// Undoes the percent-encoding of a part of a path or query; in a query, `+` is a space.
pub(super) fn decode(text: &str, plus_is_space: bool) -> Result<String, ApiError> {
    let malformed = || ApiError::bad("malformed percent-encoding");
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| {
                    byte.and_then(|byte| char::from(byte).to_digit(16))
                        .and_then(|digit| u8::try_from(digit).ok())
                };
                let high = digit(bytes.next()).ok_or_else(malformed)?;
                let low = digit(bytes.next()).ok_or_else(malformed)?;
                high * 16 + low
            }
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    if decoded.contains(&0) {
        return Err(ApiError::bad("a NUL byte is in no name and no value"));
    }
    String::from_utf8(decoded).map_err(|_| ApiError::bad("percent-encoding that is not UTF-8"))
}

/// An integer as upstream reads it: a sign and spaces around it are allowed.
pub(super) fn integer(text: &str) -> Option<i64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_undone_and_bad_ones_refused() {
        let good = [("a%2Fb", "a/b"), ("%C3%bc+x", "ü x"), ("", "")];
        for (text, decoded) in good {
            assert_eq!(decode(text, true).ok().as_deref(), Some(decoded), "{text}");
        }
        assert_eq!(decode("a+b", false).ok().as_deref(), Some("a+b"));
        for text in ["%", "%1", "%zz", "%+1", "%ff", "%00", "a%C3"] {
            assert!(decode(text, true).is_err(), "{text}");
        }
    }

    #[test]
    fn the_first_of_a_repeated_name_counts() {
        let params = Params::read("a=1&&a=2&b&c=x=y").expect("well formed");
        assert_eq!(params.first("a"), Some("1"));
        assert_eq!(params.first("b"), Some(""));
        assert_eq!(params.first("c"), Some("x=y"));
        assert_eq!(params.first("d"), None);
    }
}
