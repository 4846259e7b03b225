//! Service files: named groups of connection parameters.
//!
//! Follows libpq: the file of the user first, then that of the system.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::dsn::Pair;
use super::params::{Env, ParamsError};

/// The directory of the system's file where `PGSYSCONFDIR` is not set, as Debian builds libpq.
const SYSCONFDIR: &str = "/etc/postgresql-common";

/// The parameters of a service.
///
/// # Errors
/// If no file defines it, or a file cannot be used.
pub(crate) fn find(
    name: &str,
    file: Option<PathBuf>,
    env: Env<'_>,
) -> Result<Vec<Pair>, ParamsError> {
    let explicit = file.is_some();
    let users = file.or_else(|| Some(Path::new(&env("HOME")?).join(".pg_service.conf")));
    let systems = env("PGSYSCONFDIR").unwrap_or_else(|| SYSCONFDIR.to_owned());
    let systems = Path::new(&systems).join("pg_service.conf");
    let mut looked_in = None;
    for path in users.into_iter().chain([systems]) {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound && !explicit => continue,
            Err(source) => {
                return Err(ParamsError::File {
                    problem: "cannot read the service file".to_owned(),
                    path,
                    source: Some(source),
                });
            }
        };
        match group(&text, name) {
            Ok(Some(pairs)) => return Ok(pairs),
            Ok(None) if explicit => {
                looked_in = Some(path);
                break;
            }
            Ok(None) => looked_in = Some(path),
            Err((line, problem)) => {
                return Err(ParamsError::File {
                    problem: format!("{problem}, in line {line} of the service file"),
                    path,
                    source: None,
                });
            }
        }
    }
    Err(match looked_in {
        Some(path) => ParamsError::File {
            problem: format!("the service {name:?} is not defined in"),
            path,
            source: None,
        },
        None => ParamsError::Invalid {
            name: "service",
            problem: "is set, and there is no service file".to_owned(),
        },
    })
}

/// The pairs of a group, if the file has it.
fn group(text: &str, name: &str) -> Result<Option<Vec<Pair>>, (usize, &'static str)> {
    let mut found: Option<Vec<Pair>> = None;
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            if header.strip_suffix(']') == Some(name) {
                found = Some(Vec::new());
            }
            continue;
        }
        let Some(pairs) = &mut found else { continue };
        if line.starts_with("ldap") {
            return Err((at + 1, "a look-up in LDAP is not supported"));
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err((at + 1, "a parameter has no \"=\""));
        };
        if ["service", "servicefile"].contains(&key) {
            return Err((at + 1, "a service cannot name another service"));
        }
        pairs.push((key.to_owned(), value.to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# comment
[other]
host=elsewhere

[metaflow]
host=db
  port=6432
password=a = b
# end
[last]
user=x
";

    #[test]
    fn a_group_ends_where_the_next_begins() {
        let pairs = group(FILE, "metaflow")
            .expect("well formed")
            .expect("defined");
        let expected = [("host", "db"), ("port", "6432"), ("password", "a = b")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(pairs, expected);
        assert_eq!(group(FILE, "absent").expect("well formed"), None);
    }

    #[test]
    fn malformed_lines_are_refused_by_their_number() {
        for (text, line) in [
            ("[a]\nhost", 2),
            ("[a]\n\nservice=b", 3),
            ("[a]\nldap://x", 2),
        ] {
            let (at, _) = group(text, "a").expect_err("malformed");
            assert_eq!(at, line);
        }
    }
}
