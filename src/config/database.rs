//! Options of the connection to the database.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};

use super::given;
use crate::pg::{CONNECT_TIMEOUT, Connector, TlsParams, split_tls};

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
    /// Maximum seconds for a connection attempt [default: 10]
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
        self.connector_to(None)
    }

    /// The same, with another host where one is given, also in a connection string.
    ///
    /// # Errors
    /// As [`Self::connector`].
    pub fn connector_to(&self, host: Option<&str>) -> anyhow::Result<Connector> {
        let (mut config, tls) = match self.dsn()? {
            Some(dsn) => from_dsn(dsn.expose_secret())?,
            None => self.parts()?,
        };
        if let Some(host) = host {
            config = moved(&config, host);
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(self.timeout()?);
        }
        Ok(Connector::new(config, &tls)?)
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

    /// Each part is passed to the driver unchanged: a password may contain any character, so no
    /// connection string is built from parts.
    fn parts(&self) -> anyhow::Result<(tokio_postgres::Config, TlsParams)> {
        let part = |value: Option<&String>, default: &str| {
            given(value).map_or_else(|| default.to_owned(), Clone::clone)
        };
        let port = part(self.db_port.as_ref(), "5432");
        let mut config = tokio_postgres::Config::new();
        config
            .host(part(self.db_host.as_ref(), "localhost"))
            .port(port.parse().with_context(|| {
                format!("MF_METADATA_DB_PORT is {port:?}: give a number from 1 to 65535")
            })?)
            .user(part(self.db_user.as_ref(), "postgres"))
            .dbname(part(self.db_name.as_ref(), "postgres"))
            .password(
                self.db_pswd
                    .as_ref()
                    .map_or("postgres", |secret| secret.expose_secret()),
            );
        // The metadata service passes only these modes to its driver; with any other it ignores the
        // certificates too, and the default of its driver, `prefer`, applies.
        let known = ["allow", "prefer", "require", "verify-ca", "verify-full"];
        let mode = given(self.db_ssl_mode.as_ref()).filter(|mode| known.contains(&mode.as_str()));
        let path = |value: Option<&String>| mode.and(given(value)).cloned();
        let tls = TlsParams {
            mode: mode.cloned(),
            cert_path: path(self.db_ssl_cert_path.as_ref()),
            key_path: path(self.db_ssl_key_path.as_ref()),
            root_cert_path: path(self.db_ssl_root_cert_path.as_ref()),
        };
        Ok((config, tls))
    }
}

/// The same parameters for another host. Settings that choose among several hosts do not apply to it.
fn moved(config: &tokio_postgres::Config, host: &str) -> tokio_postgres::Config {
    let mut moved = tokio_postgres::Config::new();
    moved
        .host(host)
        .port(config.get_ports().first().copied().unwrap_or(5432))
        .channel_binding(config.get_channel_binding())
        .ssl_negotiation(config.get_ssl_negotiation());
    if let Some(user) = config.get_user() {
        moved.user(user);
    }
    if let Some(password) = config.get_password() {
        moved.password(password);
    }
    if let Some(name) = config.get_dbname() {
        moved.dbname(name);
    }
    if let Some(options) = config.get_options() {
        moved.options(options);
    }
    if let Some(name) = config.get_application_name() {
        moved.application_name(name);
    }
    if let Some(limit) = config.get_connect_timeout() {
        moved.connect_timeout(*limit);
    }
    if let Some(limit) = config.get_tcp_user_timeout() {
        moved.tcp_user_timeout(*limit);
    }
    moved
}

fn from_dsn(dsn: &str) -> anyhow::Result<(tokio_postgres::Config, TlsParams)> {
    let (rest, tls) = split_tls(dsn)?;
    // The driver's message may quote a part of the string, which may be secret.
    let mut config: tokio_postgres::Config = rest.parse().map_err(|_| {
        anyhow::anyhow!("the connection string is malformed, or has an unknown parameter")
    })?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        config.host("localhost");
    }
    if config.get_user().is_none() {
        config.user("postgres");
    }
    Ok((config, tls))
}

#[cfg(test)]
mod tests {
    use clap::{FromArgMatches as _, Parser};
    use tokio_postgres::config::Host;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        database: DatabaseArgs,
    }

    fn parse(line: &[&str]) -> anyhow::Result<tokio_postgres::Config> {
        // Without the environment, so that the machine's own variables do not matter.
        let mut command = <Line as clap::CommandFactory>::command().no_binary_name(true);
        command = command.mut_args(|arg| arg.env(None::<&str>));
        let line = Line::from_arg_matches(&command.try_get_matches_from(line)?)?;
        Ok(line.database.connector()?.config().clone())
    }

    #[test]
    fn parts_have_upstreams_defaults() {
        let config = parse(&[]).expect("defaults are valid");
        assert_eq!(config.get_hosts(), [Host::Tcp("localhost".into())]);
        assert_eq!(config.get_ports(), [5432]);
        assert_eq!(config.get_user(), Some("postgres"));
        assert_eq!(config.get_dbname(), Some("postgres"));
        assert_eq!(config.get_password(), Some(&b"postgres"[..]));
    }

    #[test]
    fn a_connection_string_wins_over_parts() {
        let config =
            parse(&["--db-host", "a", "--database-url", "postgres://u@b:7/d"]).expect("valid");
        assert_eq!(config.get_hosts(), [Host::Tcp("b".into())]);
        assert_eq!(config.get_ports(), [7]);
    }

    #[test]
    fn a_replica_has_all_but_the_host_of_the_database() {
        let config =
            from_dsn("postgres://u:p@a:7,b:8/d?target_session_attrs=read-write&options=-cx%3Dy")
                .expect("valid")
                .0;
        let moved = moved(&config, "replica");
        assert_eq!(moved.get_hosts(), [Host::Tcp("replica".into())]);
        assert_eq!(moved.get_ports(), [7]);
        assert_eq!(moved.get_user(), Some("u"));
        assert_eq!(moved.get_password(), Some(&b"p"[..]));
        assert_eq!(moved.get_dbname(), Some("d"));
        assert_eq!(moved.get_options(), Some("-cx=y"));
        assert_eq!(
            moved.get_target_session_attrs(),
            tokio_postgres::config::TargetSessionAttrs::Any
        );
    }

    #[test]
    fn a_password_holds_any_character() {
        let hard = "p@ss:/?#[]' \\%20";
        let config = parse(&["--db-pswd", hard]).expect("valid");
        assert_eq!(config.get_password(), Some(hard.as_bytes()));
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
            &["--db-port", "x"],
            &["--db-timeout", "0"],
            &["--database-url", "host=a sslmode=secretly"],
        ] {
            let error = format!("{:#}", parse(line).expect_err("must be refused"));
            if line[1].contains("sslmode") {
                continue;
            }
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
