//! Password files, in the format of libpq's `.pgpass`.
//!
//! A file that other users can read is ignored, as libpq ignores it. The file is read for each
//! connection; the warning about its type or its permissions is logged once for each path.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use secrecy::SecretString;

/// What a line is searched by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) dbname: &'a str,
    pub(crate) user: &'a str,
}

/// The warnings that were logged, each with the path of its file.
static WARNED: Mutex<BTreeSet<(PathBuf, &str)>> = Mutex::new(BTreeSet::new());

/// The password of the first line that matches.
pub(crate) fn find(path: &Path, key: &Key<'_>) -> Option<SecretString> {
    if let Some(reason) = why_ignored(path)? {
        warn_once(path, reason);
        return None;
    }
    match std::fs::read_to_string(path) {
        Ok(text) => text.lines().find_map(|line| password(line, key)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the password file");
            None
        }
    }
}

/// Why the file is ignored, if it is; none if there is no file.
pub(crate) fn why_ignored(path: &Path) -> Option<Option<&'static str>> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() {
        return Some(Some("ignoring the password file: it is not a plain file"));
    }
    let open = metadata.permissions().mode() & 0o077 != 0;
    Some(open.then_some(
        "ignoring the password file: group or others can access it; its permissions must be 0600 or \
         less",
    ))
}

fn warn_once(path: &Path, warning: &'static str) {
    if is_first(path, warning) {
        tracing::warn!(path = %path.display(), "{warning}");
    }
}

/// Whether this is the first time that this warning concerns this file.
fn is_first(path: &Path, warning: &'static str) -> bool {
    let mut warned = WARNED.lock().unwrap_or_else(PoisonError::into_inner);
    warned.insert((path.to_owned(), warning))
}

fn password(line: &str, key: &Key<'_>) -> Option<SecretString> {
    if line.starts_with('#') {
        return None;
    }
    let port = key.port.to_string();
    let mut rest = line;
    for wanted in [key.host, &port, key.dbname, key.user] {
        let (field, after) = field(rest)?;
        if field != ["*"] && unescaped(&field) != wanted {
            return None;
        }
        rest = after;
    }
    let mut password = String::new();
    let mut chars = rest.trim_end_matches(['\r', '\n']).chars();
    while let Some(c) = chars.next() {
        password.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    Some(password.into())
}

/// The characters of the next field, each with the backslash that escapes it, and what follows the
/// colon.
fn field(text: &str) -> Option<(Vec<&str>, &str)> {
    let mut field = Vec::new();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        if c == ':' {
            return Some((field, &text[at + 1..]));
        }
        let escaped = if c == '\\' {
            text[at + 1..].chars().next()
        } else {
            None
        };
        let end = at + c.len_utf8() + escaped.map_or(0, char::len_utf8);
        field.push(&text[at..end]);
        at = end;
    }
    None
}

fn unescaped(field: &[&str]) -> String {
    field
        .iter()
        .map(|part| {
            part.strip_prefix('\\')
                .filter(|rest| !rest.is_empty())
                .unwrap_or(part)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    const KEY: Key<'static> = Key {
        host: "::1",
        port: 5432,
        dbname: "db",
        user: "app",
    };

    #[test]
    fn fields_match_exactly_or_by_a_star_and_may_be_escaped() {
        for (line, expected) in [
            (r"\:\:1:5432:db:app:secret", Some("secret")),
            (r"*:*:*:*:a\:b\\c:d", Some(r"a:b\c:d")),
            ("*:*:*:*:", Some("")),
            ("*:*:*:app:x\r", Some("x")),
            (r"\*:*:*:*:x", None),
            ("*:5433:*:*:x", None),
            ("*:*:*:other:x", None),
            ("#*:*:*:*:x", None),
            ("*:*:*:app", None),
            ("", None),
        ] {
            let found = password(line, &KEY);
            let found = found.as_ref().map(|password| password.expose_secret());
            assert_eq!(found, expected, "{line}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_ignored() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("pgpass");
        std::fs::write(&path, "# comment\nother:*:*:*:wrong\n*:*:*:*:right\n").expect("writable");
        for (mode, readable) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&path, permissions).expect("it is ours");
            let found = find(&path, &KEY);
            let found = found.as_ref().map(|password| password.expose_secret());
            assert_eq!(found, readable.then_some("right"), "{mode:o}");
        }
        assert!(find(directory.path(), &KEY).is_none());
        assert!(find(&directory.path().join("absent"), &KEY).is_none());
    }

    #[test]
    fn a_warning_is_logged_once_for_each_path() {
        let (one, other) = (Path::new("/absent/one"), Path::new("/absent/other"));
        assert!(is_first(one, "permissions"));
        assert!(!is_first(one, "permissions"));
        assert!(is_first(other, "permissions"));
        assert!(is_first(one, "type"));
    }
}
