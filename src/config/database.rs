//! Options of the connection to the database.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};

use super::given;
use crate::pg::{CONNECT_TIMEOUT, Connector, ParamsSource};

/// How to connect to the database. A connection string takes precedence over the parts.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Database")]
pub struct DatabaseArgs {
    /// Connection string, a URI or `key=value` pairs
    #[arg(
        long,
        env = "DATABASE_URL",
        hide_env_values = true,
        value_name = "DSN",
        global = true
    )]
    pub database_url: Option<SecretString>,
    /// File with the connection string, read for each connection, so that it may change while the daemon
    /// runs
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "PATH", global = true)]
    pub database_url_file: Option<String>,
    /// Connection string, under the name that the metadata service uses
    #[arg(
        long,
        env = "MF_METADATA_DB_DSN",
        hide_env_values = true,
        value_name = "DSN",
        global = true
    )]
    pub db_dsn: Option<SecretString>,
    /// Host name, address or socket directory [default: localhost]
    #[arg(long, env = "MF_METADATA_DB_HOST", global = true)]
    pub db_host: Option<String>,
    /// Port [default: 5432]
    #[arg(long, env = "MF_METADATA_DB_PORT", global = true)]
    pub db_port: Option<String>,
    /// Role [default: postgres]
    #[arg(long, env = "MF_METADATA_DB_USER", global = true)]
    pub db_user: Option<String>,
    /// Password; prefer the variable, because other users can read a command line [default:
    /// postgres]
    #[arg(
        long,
        env = "MF_METADATA_DB_PSWD",
        hide_env_values = true,
        global = true
    )]
    pub db_pswd: Option<SecretString>,
    /// File with the password, also for a connection string without one; read for each connection,
    /// so that the password may change while the daemon runs
    #[arg(
        long,
        env = "MF_METADATA_DB_PSWD_FILE",
        value_name = "PATH",
        global = true
    )]
    pub db_pswd_file: Option<String>,
    /// Database [default: postgres]
    #[arg(long, env = "MF_METADATA_DB_NAME", global = true)]
    pub db_name: Option<String>,
    /// allow, prefer, require, verify-ca or verify-full; as in the metadata service, any other
    /// value means TLS if the server offers it
    #[arg(long, env = "MF_METADATA_DB_SSL_MODE", global = true)]
    pub db_ssl_mode: Option<String>,
    /// Client certificate, a PEM file
    #[arg(
        long,
        env = "MF_METADATA_DB_SSL_CERT_PATH",
        value_name = "PATH",
        global = true
    )]
    pub db_ssl_cert_path: Option<String>,
    /// Client key, a PEM file
    #[arg(
        long,
        env = "MF_METADATA_DB_SSL_KEY_PATH",
        value_name = "PATH",
        global = true
    )]
    pub db_ssl_key_path: Option<String>,
    /// Trusted certificates, a PEM file; without one, those of the system
    #[arg(
        long,
        env = "MF_METADATA_DB_SSL_ROOT_CERT_PATH",
        value_name = "PATH",
        global = true
    )]
    pub db_ssl_root_cert_path: Option<String>,
    /// Maximum seconds for a connection attempt to one address, unless the connection string has
    /// connect_timeout [default: 10]
    #[arg(
        long,
        env = "MF_METADATA_DB_TIMEOUT",
        value_name = "SECONDS",
        global = true
    )]
    pub db_timeout: Option<String>,
}

impl DatabaseArgs {
    /// A connector for these parameters.
    ///
    /// # Errors
    /// If they are malformed or contradict each other; the message says which, and no secret.
    pub fn connector(&self) -> anyhow::Result<Connector> {
        Connector::new(self.source()?)
    }

    /// A connector that waits for files of TLS, if they are missing.
    ///
    /// # Errors
    /// If other parameters cannot be used.
    pub fn daemon_connector(&self) -> anyhow::Result<Connector> {
        Connector::new_for_daemon(self.source()?)
    }

    /// A connector to a replica: another host with the same parameters.
    ///
    /// # Errors
    /// As [`Self::daemon_connector`].
    pub fn connector_to(&self, replica: &str) -> anyhow::Result<Connector> {
        let source = self.source()?.with_host(Some(replica.to_owned()));
        Ok(Connector::new_for_daemon(source)?.replica())
    }

    /// A connector by another connection string, for LISTEN. The file of the password applies to it
    /// unless it contains a password.
    ///
    /// # Errors
    /// As [`Self::connector`].
    pub fn connector_for_listen(&self, url: &SecretString) -> anyhow::Result<Connector> {
        let mut source = ParamsSource::dsn(url.clone(), self.timeout()?);
        if !source.has_password() {
            source = source.with_password_file(self.password_file());
        }
        Connector::new(source).context("--listen-url (STATUS_INDEXER_LISTEN_URL) cannot be used")
    }

    fn source(&self) -> anyhow::Result<ParamsSource> {
        let timeout = self.timeout()?;
        let source = match (self.dsn()?, given(self.database_url_file.as_ref())) {
            (Some(_), Some(_)) => bail!(
                "DATABASE_URL_FILE is set, and so is DATABASE_URL or MF_METADATA_DB_DSN: unset one"
            ),
            (Some(dsn), None) => ParamsSource::dsn(dsn.clone(), timeout),
            (None, Some(path)) => ParamsSource::dsn_file(path.into(), timeout),
            (None, None) => ParamsSource::parts(self.parts()?, timeout),
        };
        Ok(source.with_password_file(self.password_file()))
    }

    fn password_file(&self) -> Option<PathBuf> {
        given(self.db_pswd_file.as_ref()).map(PathBuf::from)
    }

    fn dsn(&self) -> anyhow::Result<Option<&SecretString>> {
        let filled = |dsn: &&SecretString| !dsn.expose_secret().is_empty();
        let ours = self.database_url.as_ref().filter(filled);
        let upstreams = self.db_dsn.as_ref().filter(filled);
        if let (Some(a), Some(b)) = (ours, upstreams) {
            ensure!(
                a.expose_secret() == b.expose_secret(),
                "DATABASE_URL and MF_METADATA_DB_DSN are both set and differ: unset one"
            );
        }
        Ok(ours.or(upstreams))
    }

    fn timeout(&self) -> anyhow::Result<Duration> {
        let Some(text) = given(self.db_timeout.as_ref()) else {
            return Ok(CONNECT_TIMEOUT);
        };
        match text.parse::<u64>() {
            Ok(secs @ 1..=3600) => Ok(Duration::from_secs(secs)),
            _ => bail!("MF_METADATA_DB_TIMEOUT is {text:?}: give whole seconds from 1 to 3600"),
        }
    }

    /// The parts under their names in libpq. Each is used unchanged: a password may contain any
    /// character, so no connection string is built from parts.
    fn parts(&self) -> anyhow::Result<Vec<(&'static str, SecretString)>> {
        let port = given(self.db_port.as_ref()).map_or("5432", String::as_str);
        ensure!(
            port.split(',')
                .all(|port| port.parse::<u16>().is_ok_and(|port| port > 0)),
            "MF_METADATA_DB_PORT is {port:?}: give a number from 1 to 65535"
        );
        let part = |value: Option<&String>, default: &str| {
            SecretString::from(given(value).map_or(default, String::as_str))
        };
        let mut parts = vec![
            ("host", part(self.db_host.as_ref(), "localhost")),
            ("port", port.into()),
            ("user", part(self.db_user.as_ref(), "postgres")),
            ("dbname", part(self.db_name.as_ref(), "postgres")),
        ];
        let password = self.db_pswd.clone();
        let password = password.filter(|secret| !secret.expose_secret().is_empty());
        if password.is_some() || self.password_file().is_none() {
            parts.push(("password", password.unwrap_or_else(|| "postgres".into())));
        }
        // The metadata service passes only these modes to its driver; with any other it ignores the
        // certificates too, and the default of its driver, `prefer`, applies.
        let known = ["allow", "prefer", "require", "verify-ca", "verify-full"];
        let mode = given(self.db_ssl_mode.as_ref()).filter(|mode| known.contains(&mode.as_str()));
        if mode.is_some() {
            let tls = [
                ("sslmode", mode),
                ("sslcert", given(self.db_ssl_cert_path.as_ref())),
                ("sslkey", given(self.db_ssl_key_path.as_ref())),
                ("sslrootcert", given(self.db_ssl_root_cert_path.as_ref())),
            ];
            let given = tls
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)));
            parts.extend(given.map(|(name, value)| (name, value.as_str().into())));
        }
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use clap::{FromArgMatches as _, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        database: DatabaseArgs,
    }

    fn args(line: &[&str]) -> DatabaseArgs {
        // Without the environment, so that the machine's own variables do not matter.
        let mut command = <Line as clap::CommandFactory>::command().no_binary_name(true);
        command = command.mut_args(|arg| arg.env(None::<&str>));
        let matches = command.try_get_matches_from(line).expect("known flags");
        Line::from_arg_matches(&matches)
            .expect("known flags")
            .database
    }

    fn parts(line: &[&str]) -> Vec<(&'static str, String)> {
        let parts = args(line).parts().expect("valid");
        let shown = parts
            .iter()
            .map(|(name, value)| (*name, value.expose_secret().to_owned()));
        shown.collect()
    }

    #[test]
    fn parts_have_upstreams_defaults() {
        let expected = [
            ("host", "localhost"),
            ("port", "5432"),
            ("user", "postgres"),
            ("dbname", "postgres"),
            ("password", "postgres"),
        ];
        assert_eq!(
            parts(&[]),
            expected.map(|(name, value)| (name, value.to_owned()))
        );
    }

    #[test]
    fn a_password_holds_any_character() {
        let hard = "p@ss:/?#[]' \\%20";
        assert!(parts(&["--db-pswd", hard]).contains(&("password", hard.to_owned())));
    }

    #[test]
    fn certificates_count_only_with_a_mode_that_upstream_passes_on() {
        let root = ["--db-ssl-root-cert-path", "/root.crt"];
        let named = |line: &[&str]| {
            let line = [line, &root].concat();
            parts(&line).iter().any(|(name, _)| *name == "sslrootcert")
        };
        assert!(named(&["--db-ssl-mode", "verify-ca"]));
        assert!(!named(&["--db-ssl-mode", "disabled"]));
        assert!(!named(&[]));
    }

    #[test]
    fn contradictions_and_malformed_values_are_refused_without_secrets() {
        for line in [
            &[
                "--database-url",
                "postgres://a/secret",
                "--db-dsn",
                "postgres://b/secret",
            ][..],
            &["--database-url", "host=a secret"],
            &["--database-url", "host=a nosuch=secret"],
            &["--database-url", "host=a sslmode=secret"],
            &["--database-url", "password=secret", "--db-pswd-file", "f"],
            &["--database-url", "host=secret", "--database-url-file", "f"],
            &["--db-dsn", "host=secret", "--database-url-file", "f"],
            &["--database-url-file", "/nosuch"],
            &["--db-pswd", "secret", "--db-pswd-file", "f"],
            &["--db-port", "x"],
            &["--db-port", "0"],
            &["--db-timeout", "0"],
        ] {
            let error = args(line).connector().expect_err("must be refused");
            let error = format!("{error:#}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
