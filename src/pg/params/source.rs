//! What an operator configured, and how it becomes the parameters of one connection.
//!
//! Owns the order of precedence: the connection string, then the service file, then the environment,
//! then the defaults; and for the password: the file of the password, then the parameters, then the
//! password file. Everything is read anew for each connection.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use super::error::ParamsError;
use super::resolved::{Limit, Params};
use super::target::{DEFAULT_HOST, Target};
use super::values::Values;
use crate::pg::{dsn, passfile};

/// What an operator configured.
#[derive(Debug, Clone)]
pub struct ParamsSource {
    base: Base,
    password_file: Option<PathBuf>,
    /// Replaces the hosts.
    host: Option<String>,
    /// The limit on one attempt, unless the parameters contain one.
    default_limit: Duration,
}

#[derive(Debug, Clone)]
enum Base {
    /// A connection string; the environment fills in what it leaves out, as for libpq.
    Dsn(SecretString),
    /// A file with a connection string.
    DsnFile(PathBuf),
    /// Parts, used unchanged: a password may contain any character.
    Parts(Vec<(&'static str, SecretString)>),
}

/// Looks up an environment variable.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's environment. An empty variable counts as unset.
pub(crate) fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl ParamsSource {
    /// A connection string, and the limit on one attempt to connect if it contains none.
    #[must_use]
    pub fn dsn(dsn: SecretString, default_limit: Duration) -> Self {
        Self::new(Base::Dsn(dsn), default_limit)
    }

    /// A file with a connection string, read for each connection.
    #[must_use]
    pub fn dsn_file(path: PathBuf, default_limit: Duration) -> Self {
        Self::new(Base::DsnFile(path), default_limit)
    }

    /// Parameters under their names in libpq.
    #[must_use]
    pub fn parts(parts: Vec<(&'static str, SecretString)>, default_limit: Duration) -> Self {
        Self::new(Base::Parts(parts), default_limit)
    }

    fn new(base: Base, default_limit: Duration) -> Self {
        Self {
            base,
            password_file: None,
            host: None,
            default_limit,
        }
    }

    /// Reads the password from a file, for each connection.
    #[must_use]
    pub fn with_password_file(mut self, path: Option<PathBuf>) -> Self {
        self.password_file = path;
        self
    }

    /// Whether the connection string itself contains a password.
    #[must_use]
    pub fn has_password(&self) -> bool {
        let Base::Dsn(dsn) = &self.base else {
            return self.password_file.is_some();
        };
        let pairs = dsn::parse(dsn.expose_secret()).unwrap_or_default();
        pairs
            .iter()
            .any(|(name, value)| name == "password" && !value.is_empty())
    }

    /// Connects to another host, with the first port; the settings that choose among several hosts do
    /// not apply to it.
    #[must_use]
    pub fn with_host(mut self, host: Option<String>) -> Self {
        self.host = host;
        self
    }

    /// The parameters as they are now, without a password from a file.
    ///
    /// # Errors
    /// If they cannot be used.
    pub(crate) fn resolve(&self, env: Env<'_>) -> Result<Params, ParamsError> {
        let mut values = match &self.base {
            Base::Dsn(dsn) => self.of_dsn(dsn, env)?,
            Base::DsnFile(path) => self.of_dsn(&read_dsn(path)?, env)?,
            Base::Parts(parts) => {
                let pairs = parts
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), value.expose_secret().to_owned()));
                let values = Values::new(pairs.collect())?;
                self.check_one_password(&values)?;
                values
            }
        };
        if let Some(host) = &self.host {
            replace_host(&mut values, host);
        }
        let mut params = values.params(env)?;
        if params.connect_timeout.is_none() {
            params.connect_timeout = Some(Limit::After(self.default_limit));
        }
        Ok(params)
    }

    fn of_dsn(&self, dsn: &SecretString, env: Env<'_>) -> Result<Values, ParamsError> {
        let values = Values::new(dsn::parse(dsn.expose_secret())?)?;
        self.check_one_password(&values)?;
        values.with_defaults(env)
    }

    fn check_one_password(&self, values: &Values) -> Result<(), ParamsError> {
        if self.password_file.is_some() && values.get("password").is_some() {
            return Err(ParamsError::Contradiction(
                "MF_METADATA_DB_PSWD_FILE is set, and there is another password: give only one",
            ));
        }
        Ok(())
    }

    /// The password for a host, as it is now.
    ///
    /// # Errors
    /// If the file with the password cannot be read.
    pub(crate) fn password(
        &self,
        params: &Params,
        target: &Target,
    ) -> Result<Option<SecretString>, ParamsError> {
        if let Some(path) = &self.password_file {
            return read_password(path).map(Some);
        }
        if params.password.is_some() {
            return Ok(params.password.clone());
        }
        let file = params.passfile.as_ref();
        Ok(file.and_then(|path| find_in_passfile(path, params, target)))
    }
}

/// Where a password comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PasswordOrigin {
    /// The file that `MF_METADATA_DB_PSWD_FILE` names.
    File(PathBuf),
    /// The connection parameters.
    Parameters,
    /// A password file of libpq, and why it is ignored, if it is.
    Passfile(PathBuf, Option<&'static str>),
    /// Nowhere.
    Nowhere,
}

impl ParamsSource {
    /// Where the password comes from.
    ///
    /// # Errors
    /// As [`Self::password`].
    pub(crate) fn password_origin(&self, params: &Params) -> Result<PasswordOrigin, ParamsError> {
        if let Some(path) = &self.password_file {
            return read_password(path).map(|_| PasswordOrigin::File(path.clone()));
        }
        if params.password.is_some() {
            return Ok(PasswordOrigin::Parameters);
        }
        let found = params.passfile.as_ref().and_then(|path| {
            let ignored = passfile::why_ignored(path)?;
            Some(PasswordOrigin::Passfile(path.clone(), ignored))
        });
        Ok(found.unwrap_or(PasswordOrigin::Nowhere))
    }
}

/// Another host, with the first port, in place of those of the parameters.
fn replace_host(values: &mut Values, host: &str) {
    let port = values.take("port").unwrap_or_default();
    let first = port.split(',').next().unwrap_or_default().to_owned();
    values.take("hostaddr");
    values.take("target_session_attrs");
    values.set("host", host.to_owned());
    values.set("port", first);
}

/// The password of a host in the password file.
fn find_in_passfile(path: &Path, params: &Params, target: &Target) -> Option<SecretString> {
    let name = target.name();
    // The default sockets, as PostgreSQL and as Debian build libpq.
    let is_default = ["/tmp", "/var/run/postgresql"].contains(&name.as_str());
    let host = if is_default { DEFAULT_HOST } else { &name };
    let key = passfile::Key {
        host,
        port: target.port,
        dbname: params.dbname.as_deref().unwrap_or(&params.user),
        user: &params.user,
    };
    passfile::find(path, &key)
}

fn read_dsn(path: &Path) -> Result<SecretString, ParamsError> {
    let text = read(path, "the connection string")?;
    let dsn = text.trim();
    if dsn.is_empty() {
        // An empty string would mean the server and the role of the environment.
        return Err(ParamsError::File {
            problem: "there is no connection string in".to_owned(),
            path: path.to_owned(),
            source: None,
        });
    }
    Ok(dsn.into())
}

fn read(path: &Path, what: &str) -> Result<String, ParamsError> {
    std::fs::read_to_string(path).map_err(|source| ParamsError::File {
        problem: format!("cannot read {what} from"),
        path: path.to_owned(),
        source: Some(source),
    })
}

fn read_password(path: &Path) -> Result<SecretString, ParamsError> {
    let text = read(path, "the password")?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).into())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::resolved::TargetSession;
    use super::super::testing::{LIMIT, problem, source};
    use super::*;

    #[test]
    fn the_connection_string_wins_over_the_service_and_that_over_the_environment() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("services");
        fs::write(&file, "[s]\nuser=service\ndbname=service\n").expect("writable");
        let path = file.to_str().expect("a path of ASCII").to_owned();
        let variables = HashMap::from([
            ("PGUSER", "environment".to_owned()),
            ("PGDATABASE", "environment".to_owned()),
            ("PGPORT", "7".to_owned()),
            ("PGSERVICE", "s".to_owned()),
            ("PGSERVICEFILE", path.clone()),
        ]);
        let env = |name: &str| variables.get(name).cloned();
        let params = source("user=string").resolve(&env).expect("valid");
        assert_eq!(params.user, "string");
        assert_eq!(params.dbname.as_deref(), Some("service"));
        assert_eq!(params.targets[0].port, 7);

        let parts = ParamsSource::parts(vec![("user", "part".into())], LIMIT);
        let params = parts.resolve(&env).expect("valid");
        assert_eq!(
            (params.user.as_str(), params.targets[0].port),
            ("part", 5432)
        );

        let text = problem(&format!("service=absent servicefile={path}"));
        assert!(text.contains("\"absent\" is not defined in"), "{text}");
        fs::write(&file, "[s]\nnosuch=secret\n").expect("writable");
        let text = problem(&format!("service=s servicefile={path}"));
        assert_eq!(text, "unknown connection parameter \"nosuch\"");
    }

    #[test]
    fn passwords_from_files_are_read_anew() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("password");
        let password = |source: &ParamsSource| {
            let params = source.resolve(&|_| None).expect("valid");
            let found = source.password(&params, &params.targets[0]);
            found.map(|found| found.map(|found| found.expose_secret().to_owned()))
        };
        let by_file = source("host=h user=u").with_password_file(Some(file.clone()));
        assert!(password(&by_file).is_err());
        for (content, expected) in [("one\n", "one"), ("two\r\n", "two"), (" x\n\n", " x\n")] {
            fs::write(&file, content).expect("writable");
            let found = password(&by_file).expect("readable");
            assert_eq!(found.as_deref(), Some(expected));
        }

        let path = file.to_str().expect("a path of ASCII");
        let by_passfile = source(&format!("host=h user=u dbname=d passfile={path}"));
        let permissions = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&file, permissions).expect("it is ours");
        for expected in ["one", "two"] {
            fs::write(&file, format!("h:5432:d:u:{expected}\n")).expect("writable");
            let found = password(&by_passfile).expect("readable");
            assert_eq!(found.as_deref(), Some(expected));
        }

        let twice = source("password=secret").with_password_file(Some(file));
        let text = twice
            .resolve(&|_| None)
            .expect_err("two passwords")
            .to_string();
        assert!(
            text.contains("give only one") && !text.contains("secret"),
            "{text}"
        );
    }

    #[test]
    fn a_connection_string_from_a_file_is_read_anew() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("dsn");
        let source = ParamsSource::dsn_file(file.clone(), LIMIT);
        assert!(source.resolve(&|_| None).is_err());
        for user in ["one", "two"] {
            let content = format!("\n postgresql://{user}@h/d \n");
            fs::write(&file, content).expect("writable");
            assert_eq!(source.resolve(&|_| None).expect("valid").user, user);
        }
        for bad in [" \n", "postgresql://u:secret@h:port/d", "host=h secret"] {
            fs::write(&file, bad).expect("writable");
            let error = source.resolve(&|_| None).expect_err(bad).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_replica_has_all_but_the_hosts_of_the_database() {
        let base = "postgres://u:p@a:7,b:8/d?target_session_attrs=read-write&options=-cx%3Dy";
        let moved = source(base).with_host(Some("replica".to_owned()));
        let params = moved.resolve(&|_| None).expect("valid");
        let target = Target {
            host: Some("replica".to_owned()),
            hostaddr: None,
            port: 7,
        };
        assert_eq!(params.targets, [target]);
        assert_eq!(params.user, "u");
        assert_eq!(params.options.as_deref(), Some("-cx=y"));
        assert_eq!(params.target_session, TargetSession::Any);
        assert!(params.password.is_some());
    }
}
