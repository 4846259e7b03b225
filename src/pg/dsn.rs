//! The grammar of libpq's connection strings: a URI or `key=value` pairs become pairs of text.
//!
//! Follows `conninfo_parse` and `conninfo_uri_parse` of libpq's `fe-connect.c` rule by rule. Gives the
//! names no meaning; [`super::params`] does. Messages never contain a part of the string, because any
//! part may be a password.

use crate::percent;

/// A malformed connection string.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[error("the connection string is malformed: {0}")]
pub(crate) struct DsnError(&'static str);

/// A parameter's name and its value.
pub(crate) type Pair = (String, String);

const NO_EQUALS: DsnError = DsnError("a parameter has no \"=\"");
const BAD_ESCAPE: DsnError = DsnError("a percent escape is invalid");

/// The pairs of a connection string, in its order. A later pair replaces an earlier one of its name.
///
/// # Errors
/// If the string is malformed.
pub(crate) fn parse(dsn: &str) -> Result<Vec<Pair>, DsnError> {
    ["postgresql://", "postgres://"]
        .iter()
        .find_map(|prefix| dsn.strip_prefix(prefix))
        .map_or_else(|| key_values(dsn), uri)
}

/// C's `isspace`.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

/// Blanks may surround `=`, a value may be quoted with `'`, and a backslash escapes the next character.
fn key_values(text: &str) -> Result<Vec<Pair>, DsnError> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start_matches(is_blank);
    while !rest.is_empty() {
        let end = rest.find(|c| c == '=' || is_blank(c)).ok_or(NO_EQUALS)?;
        let (key, after) = rest.split_at(end);
        let after = after.trim_start_matches(is_blank);
        let after = after.strip_prefix('=').ok_or(NO_EQUALS)?;
        let (value, after) = value(after.trim_start_matches(is_blank))?;
        pairs.push((key.to_owned(), value));
        rest = after.trim_start_matches(is_blank);
    }
    Ok(pairs)
}

/// A value, and what follows it.
fn value(text: &str) -> Result<(String, &str), DsnError> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.chars();
    if quoted {
        chars.next();
    }
    loop {
        let before = chars.as_str();
        match chars.next() {
            Some('\\') => value.extend(chars.next()),
            Some('\'') if quoted => return Ok((value, chars.as_str())),
            Some(c) if !quoted && is_blank(c) => return Ok((value, before)),
            Some(c) => value.push(c),
            None if quoted => return Err(DsnError("a quote is not closed")),
            None => return Ok((value, "")),
        }
    }
}

/// A URI without its scheme.
fn uri(text: &str) -> Result<Vec<Pair>, DsnError> {
    let mut pairs = Vec::new();
    let mut push = |name: &str, encoded: &str| {
        if !encoded.is_empty() {
            pairs.push((name.to_owned(), percent_decode(encoded)?));
        }
        Ok::<(), DsnError>(())
    };
    let mut rest = text;
    // The user information ends at the first `@` before the first `/`, so that a password may
    // contain `?`, `#` and `:`.
    if let Some(end) = text.find(['@', '/'])
        && text[end..].starts_with('@')
    {
        let (user, password) = text[..end].split_once(':').unwrap_or((&text[..end], ""));
        push("user", user)?;
        push("password", password)?;
        rest = &text[end + 1..];
    }
    let (hosts, ports, after) = hosts(rest)?;
    push("host", &hosts)?;
    push("port", &ports)?;
    let (path, query) = match after.split_once('?') {
        Some((path, query)) => (path, query),
        None => (after, ""),
    };
    push("dbname", path.strip_prefix('/').unwrap_or(path))?;
    parameters(query, &mut pairs)?;
    Ok(pairs)
}

/// The lists of hosts and ports, still encoded, and what follows them.
fn hosts(text: &str) -> Result<(String, String, &str), DsnError> {
    let (mut hosts, mut ports) = (String::new(), String::new());
    let mut rest = text;
    loop {
        let host;
        if let Some(inner) = rest.strip_prefix('[') {
            (host, rest) = inner
                .split_once(']')
                .ok_or(DsnError("an IPv6 address has no matching \"]\""))?;
            if host.is_empty() {
                return Err(DsnError("an IPv6 address is empty"));
            }
            if !rest.is_empty() && !rest.starts_with([':', '/', '?', ',']) {
                return Err(DsnError(
                    "an IPv6 address is followed by an unexpected character",
                ));
            }
        } else {
            let end = rest.find([':', '/', '?', ',']).unwrap_or(rest.len());
            (host, rest) = rest.split_at(end);
        }
        hosts.push_str(host);
        if let Some(after) = rest.strip_prefix(':') {
            let end = after.find(['/', '?', ',']).unwrap_or(after.len());
            ports.push_str(&after[..end]);
            rest = &after[end..];
        }
        let Some(after) = rest.strip_prefix(',') else {
            return Ok((hosts, ports, rest));
        };
        hosts.push(',');
        ports.push(',');
        rest = after;
    }
}

fn parameters(query: &str, pairs: &mut Vec<Pair>) -> Result<(), DsnError> {
    // A final `&` ends the last parameter.
    let query = query.strip_suffix('&').unwrap_or(query);
    if query.is_empty() {
        return Ok(());
    }
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').ok_or(NO_EQUALS)?;
        if value.contains('=') {
            return Err(DsnError("a parameter has a second \"=\": write %3D"));
        }
        let (name, value) = (percent_decode(name)?, percent_decode(value)?);
        // As JDBC writes it.
        let pair = if (name.as_str(), value.as_str()) == ("ssl", "true") {
            ("sslmode".to_owned(), "require".to_owned())
        } else {
            (name, value)
        };
        pairs.push(pair);
    }
    Ok(())
}

fn percent_decode(text: &str) -> Result<String, DsnError> {
    let bytes = percent::decode(text).ok_or(BAD_ESCAPE)?;
    if bytes.contains(&0) {
        return Err(DsnError("%00 is not allowed"));
    }
    String::from_utf8(bytes).map_err(|_| BAD_ESCAPE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(dsn: &str) -> Vec<(String, String)> {
        parse(dsn).unwrap_or_else(|error| panic!("{dsn}: {error}"))
    }

    fn is(dsn: &str, expected: &[(&str, &str)]) {
        let pairs = pairs(dsn);
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(pairs, expected, "{dsn}");
    }

    #[test]
    fn pairs_may_be_quoted_escaped_and_spaced() {
        is("", &[]);
        is(" \t\n", &[]);
        is("host=h", &[("host", "h")]);
        is(" host = h  port\t=\n5 ", &[("host", "h"), ("port", "5")]);
        is(
            r"password='a b\'c\\d' dbname=e",
            &[("password", r"a b'c\d"), ("dbname", "e")],
        );
        is(r"password=a\ b\'c'd", &[("password", "a b'c'd")]);
        is("password='' host=h", &[("password", ""), ("host", "h")]);
        is("password= host=h", &[("password", "host=h")]);
        is("host='a'port=5", &[("host", "a"), ("port", "5")]);
        is("password=a=b", &[("password", "a=b")]);
        is(r"password=x\", &[("password", "x")]);
    }

    #[test]
    fn a_uri_has_all_of_its_parts_optional() {
        is("postgresql://", &[]);
        is("postgres://h", &[("host", "h")]);
        is("postgresql:///d", &[("dbname", "d")]);
        is("postgresql://?host=%2Ftmp", &[("host", "/tmp")]);
        is("postgresql://u@", &[("user", "u")]);
        is(
            "postgresql://u:p%40@h:1/d?sslmode=verify-full&sslrootcert=%2Fa%20b",
            &[
                ("user", "u"),
                ("password", "p@"),
                ("host", "h"),
                ("port", "1"),
                ("dbname", "d"),
                ("sslmode", "verify-full"),
                ("sslrootcert", "/a b"),
            ],
        );
        is(
            "postgresql://h/d?ssl=true",
            &[("host", "h"), ("dbname", "d"), ("sslmode", "require")],
        );
        is(
            "postgresql://h/d?ssl=false",
            &[("host", "h"), ("dbname", "d"), ("ssl", "false")],
        );
        is("postgresql://h/d?", &[("host", "h"), ("dbname", "d")]);
        is(
            "postgresql://h/d?port=1&",
            &[("host", "h"), ("dbname", "d"), ("port", "1")],
        );
    }

    #[test]
    fn a_uri_lists_hosts_and_ports() {
        is(
            "postgresql://a:1,[::1]:2,c/d",
            &[("host", "a,::1,c"), ("port", "1,2,"), ("dbname", "d")],
        );
        is("postgresql://a,b", &[("host", "a,b"), ("port", ",")]);
        is(
            "postgresql://%2Fvar%2Frun/d",
            &[("host", "/var/run"), ("dbname", "d")],
        );
    }

    #[test]
    fn a_password_in_a_uri_may_contain_what_would_end_it_elsewhere() {
        is(
            "postgresql://app:a?b#c&d=e:f@localhost/db?sslmode=require",
            &[
                ("user", "app"),
                ("password", "a?b#c&d=e:f"),
                ("host", "localhost"),
                ("dbname", "db"),
                ("sslmode", "require"),
            ],
        );
        is(
            "postgresql://app:%25%3D@h",
            &[("user", "app"), ("password", "%="), ("host", "h")],
        );
    }

    #[test]
    fn malformed_strings_are_refused_without_their_text() {
        for dsn in [
            "secret",
            "host=a secret",
            "host secret=a",
            "password='secret",
            r"password='secret\'",
            "postgresql://h/d?secret",
            "postgresql://h/d?a=secret=b",
            "postgresql://h/d?a=secret&&b=c",
            "postgresql://secret%4@h",
            "postgresql://secret%zz@h",
            "postgresql://secret%00@h",
            "postgresql://secret%ff@h",
            "postgresql://[::1secret",
            "postgresql://[]secret",
            "postgresql://[::1]secret",
        ] {
            let error = parse(dsn).expect_err(dsn).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
