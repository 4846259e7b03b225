//! Parses a connection string of libpq: removes the TLS parameters, which the driver does not know, and
//! leaves the rest to the driver.

use super::tls::TlsParams;
use crate::percent;

/// A malformed connection string. Its text is never in the message, because it may contain a password.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the connection string is malformed: {0}")]
pub struct DsnError(&'static str);

/// Parameters of libpq that have no effect here.
const IGNORED: [&str; 12] = [
    "gssencmode",
    "krbsrvname",
    "gsslib",
    "sslcompression",
    "sslsni",
    "sslcrl",
    "sslcrldir",
    "sslpassword",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "client_encoding",
    "fallback_application_name",
];

/// Splits a connection string, a URI or `key=value` pairs, into one for the driver and the TLS
/// parameters.
///
/// # Errors
/// If a quote is not closed, a pair has no `=`, or a percent escape is malformed.
pub fn split_tls(dsn: &str) -> Result<(String, TlsParams), DsnError> {
    let is_uri = dsn.starts_with("postgres://") || dsn.starts_with("postgresql://");
    let mut tls = TlsParams::default();
    if is_uri {
        let Some((base, query)) = dsn.split_once('?') else {
            return Ok((dsn.to_owned(), tls));
        };
        let mut kept = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or(DsnError("a parameter after `?` has no `=`"))?;
            if !take(&mut tls, key, &percent_decode(value)?) {
                kept.push(pair);
            }
        }
        let rest = if kept.is_empty() {
            base.to_owned()
        } else {
            format!("{base}?{}", kept.join("&"))
        };
        return Ok((rest, tls));
    }
    let mut kept = String::new();
    for (key, value) in pairs(dsn)? {
        if !take(&mut tls, &key, &value) {
            let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
            kept.push_str(&format!("{key}='{quoted}' "));
        }
    }
    Ok((kept.trim_end().to_owned(), tls))
}

/// Takes a parameter that is not for the driver; false if the driver should get it.
fn take(tls: &mut TlsParams, key: &str, value: &str) -> bool {
    let slot = match key {
        "sslmode" => &mut tls.mode,
        "sslcert" => &mut tls.cert_path,
        "sslkey" => &mut tls.key_path,
        "sslrootcert" => &mut tls.root_cert_path,
        _ => return IGNORED.contains(&key),
    };
    *slot = Some(value.to_owned());
    true
}

fn percent_decode(text: &str) -> Result<String, DsnError> {
    percent::decode(text)
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or(DsnError("a percent escape is malformed"))
}

/// The pairs of a `key=value` string, by the rules of libpq: values may be quoted with `'`, and a
/// backslash escapes the next character.
fn pairs(text: &str) -> Result<Vec<(String, String)>, DsnError> {
    let mut found = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(found);
        }
        let mut key = String::new();
        loop {
            match chars.next() {
                Some('=') => break,
                Some(c) => key.push(c),
                None => return Err(DsnError("a parameter has no `=`")),
            }
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match chars.next() {
                Some('\\') => value.extend(chars.next()),
                Some('\'') if quoted => break,
                Some(c) if !quoted && c.is_whitespace() => break,
                Some(c) => value.push(c),
                None if quoted => return Err(DsnError("a quote is not closed")),
                None => break,
            }
        }
        found.push((key.trim().to_owned(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_parameters_leave_a_uri_and_the_rest_stays() {
        let (rest, tls) = split_tls(
            "postgresql://u:p%40@h:1/d?sslmode=verify-full&connect_timeout=3&sslrootcert=%2Fa%20b",
        )
        .expect("well formed");
        assert_eq!(rest, "postgresql://u:p%40@h:1/d?connect_timeout=3");
        assert_eq!(tls.mode.as_deref(), Some("verify-full"));
        assert_eq!(tls.root_cert_path.as_deref(), Some("/a b"));
    }

    #[test]
    fn tls_parameters_leave_pairs_and_hard_passwords_survive() {
        let (rest, tls) = split_tls(
            r"host = h password='a b\'c\\d' sslmode=require sslcert=/x dbname=d gssencmode=disable",
        )
        .expect("well formed");
        assert_eq!(rest, r"host='h' password='a b\'c\\d' dbname='d'");
        assert_eq!(tls.mode.as_deref(), Some("require"));
        assert_eq!(tls.cert_path.as_deref(), Some("/x"));
        let config: tokio_postgres::Config = rest.parse().expect("the driver reads it");
        assert_eq!(config.get_password(), Some(&br"a b'c\d"[..]));
    }

    #[test]
    fn malformed_strings_are_refused_without_their_text() {
        for dsn in [
            "password='secret",
            "secret",
            "postgres://h/d?sslmode=%4",
            "postgres://h/d?secret",
        ] {
            let error = split_tls(dsn).expect_err("malformed").to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
