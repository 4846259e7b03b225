//! Configuration: one struct a topic, every flag with an environment variable, validated once.
//!
//! The variables are those that operators have set for the metadata service already. An empty one
//! counts as unset. Secrets are neither shown nor logged.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use axum::http::HeaderValue;
use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};

use crate::api::Limits;
use crate::migrate::TableNames;
use crate::pg::{CONNECT_TIMEOUT, Connector, SessionMode, TlsParams, split_tls};

/// How to reach the database. A connection string wins over the parts.
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
    /// The same, as the metadata service calls it
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
    /// Password; better given by the variable than on the command line [default: postgres]
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
    /// allow, prefer, require, verify-ca or verify-full; as in the metadata service, anything else
    /// means TLS if the server offers it
    #[arg(long, env = "MF_METADATA_DB_SSL_MODE", global = true)]
    pub db_ssl_mode: Option<String>,
    /// The client's certificate, a PEM file
    #[arg(
        long,
        env = "MF_METADATA_DB_SSL_CERT_PATH",
        value_name = "PATH",
        global = true
    )]
    pub db_ssl_cert_path: Option<String>,
    /// The client's key, a PEM file
    #[arg(
        long,
        env = "MF_METADATA_DB_SSL_KEY_PATH",
        value_name = "PATH",
        global = true
    )]
    pub db_ssl_key_path: Option<String>,
    /// Certificates to trust, a PEM file; without one, the system's
    #[arg(
        long,
        env = "MF_METADATA_DB_SSL_ROOT_CERT_PATH",
        value_name = "PATH",
        global = true
    )]
    pub db_ssl_root_cert_path: Option<String>,
    /// Seconds that a connection attempt may take [default: 10]
    #[arg(
        long,
        env = "MF_METADATA_DB_TIMEOUT",
        value_name = "SECONDS",
        global = true
    )]
    pub db_timeout: Option<String>,
}

/// Names of upstream's tables.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Tables")]
pub struct TableArgs {
    /// Schema of the tables, where the role's search path does not find them
    #[arg(long, env = "DB_SCHEMA_NAME", value_name = "SCHEMA", global = true)]
    pub db_schema: Option<String>,
    /// Table of runs; folds to lower case unless quoted, may carry a schema
    #[arg(
        long,
        env = "DB_TABLE_NAME_RUNS",
        default_value = "runs_v3",
        global = true
    )]
    pub table_runs: String,
    /// Table of metadata; folds to lower case unless quoted, may carry a schema
    #[arg(
        long,
        env = "DB_TABLE_NAME_METADATA",
        default_value = "metadata_v3",
        global = true
    )]
    pub table_metadata: String,
}

/// Parameters of the definition.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Definition")]
pub struct DefinitionArgs {
    /// Seconds after which a heartbeat is stale; must equal the metadata service's
    #[arg(long, env = "RUN_INACTIVE_CUTOFF_TIME", default_value_t = 360, value_name = "SECONDS",
          value_parser = clap::value_parser!(i64).range(1..=315_360_000), global = true)]
    pub cutoff: i64,
}

/// What only the daemon takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Daemon")]
pub struct DaemonArgs {
    /// Address for /metrics, /healthz and /readyz
    #[arg(
        long,
        env = "STATUS_INDEXER_METRICS_LISTEN",
        default_value = "127.0.0.1:9487",
        value_name = "ADDR"
    )]
    pub metrics_listen: SocketAddr,
    /// Connections of the pool, besides the one that listens
    #[arg(long, env = "STATUS_INDEXER_POOL_MAX", default_value_t = 4, value_name = "N",
          value_parser = clap::value_parser!(u8).range(2..=64))]
    pub pool_max: u8,
    /// Whether connections are sessions of their own; behind PgBouncer's transaction pooling they
    /// are not, and the daemon polls
    #[arg(
        long,
        env = "STATUS_INDEXER_SESSION_MODE",
        default_value = "auto",
        value_enum
    )]
    pub session_mode: SessionMode,
    /// Seconds between two looks at the running runs' heartbeats, at most; deadlines have looks of their own
    #[arg(long, env = "STATUS_INDEXER_SWEEP_INTERVAL", default_value_t = 10, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub sweep_interval: u64,
    /// Runs a second that are compared with the definition, for ever, to prove the column
    #[arg(long, env = "STATUS_INDEXER_RECONCILE_RATE", default_value_t = 500, value_name = "RUNS",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub reconcile_rate: u32,
    /// Seconds from the beginning of one such pass to that of the next, at least
    #[arg(long, env = "STATUS_INDEXER_RECONCILE_INTERVAL", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub reconcile_interval: u64,
    /// Seconds to finish what is under way after SIGTERM or SIGINT
    #[arg(long, env = "STATUS_INDEXER_SHUTDOWN_TIMEOUT", default_value_t = 10, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=600))]
    pub shutdown_timeout: u64,
}

impl DaemonArgs {
    /// What a daemon runs with that is told nothing, whatever the environment holds.
    #[must_use]
    pub fn defaults() -> Self {
        defaults()
    }
}

fn defaults<T: Args>() -> T {
    let command = T::augment_args(clap::Command::new("defaults"))
        .no_binary_name(true)
        .mut_args(|arg| arg.env(None::<&str>));
    let matches = command
        .try_get_matches_from([""; 0])
        .expect("each flag has a default, or is none by default");
    T::from_arg_matches(&matches).expect("defaults are valid")
}

/// The read API, and where it reads.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Read API")]
pub struct ApiArgs {
    /// Address for the read API
    #[arg(
        long,
        env = "STATUS_INDEXER_HTTP_LISTEN",
        default_value = "127.0.0.1:8081",
        value_name = "ADDR"
    )]
    pub http_listen: SocketAddr,
    /// What every path of the read API begins with
    #[arg(long, env = "PATH_PREFIX", default_value = "", hide_default_value = true, value_parser = path_prefix)]
    pub path_prefix: String,
    /// Version of the metadata service to report with each answer; whether a client filters and pages
    /// goes by the service's own /ping
    #[arg(
        long,
        env = "STATUS_INDEXER_SERVICE_VERSION",
        default_value = "2.6.1",
        value_name = "VERSION"
    )]
    pub service_version: HeaderValue,
    /// Host to read from, in place of the database's own; all else stays the same
    #[arg(long, env = "MF_METADATA_DB_READ_REPLICA_HOST", value_name = "HOST")]
    pub read_replica_host: Option<String>,
    /// Whether the replica is read from: true or false [default: true where there is one]
    #[arg(long, env = "USE_SEPARATE_READER_POOL", value_name = "BOOL")]
    pub use_separate_reader_pool: Option<String>,
    /// Connections that read at once; the indexer's own are not among them
    #[arg(long, env = "STATUS_INDEXER_READER_POOL_MAX", default_value_t = 8, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub reader_pool_max: u16,
    /// Requests that wait for a connection; the next one is answered 503
    #[arg(
        long,
        env = "STATUS_INDEXER_READER_QUEUE_LIMIT",
        default_value_t = 64,
        value_name = "N"
    )]
    pub reader_queue_limit: u16,
    /// Seconds that a read may take on the server
    #[arg(long, env = "STATUS_INDEXER_READER_STATEMENT_TIMEOUT", default_value_t = 10, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=600))]
    pub reader_statement_timeout: u64,
}

impl ApiArgs {
    /// What the API runs with when it is told nothing, whatever the environment holds.
    #[must_use]
    pub fn defaults() -> Self {
        defaults()
    }

    /// The host to read from, where it is another one.
    ///
    /// # Errors
    /// If it cannot be told whether to.
    pub fn replica(&self) -> anyhow::Result<Option<&str>> {
        let host = given(self.read_replica_host.as_ref()).map(String::as_str);
        match given(self.use_separate_reader_pool.as_ref()).map(|text| text.to_lowercase()) {
            None => Ok(host),
            Some(text) if text == "1" || text == "true" => Ok(host),
            Some(text) if text == "0" || text == "false" => Ok(None),
            Some(text) => bail!("USE_SEPARATE_READER_POOL is {text:?}: give true or false"),
        }
    }

    /// How much is read at once.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            pool_max: self.reader_pool_max.into(),
            queue: self.reader_queue_limit.into(),
            statement: Duration::from_secs(self.reader_statement_timeout),
        }
    }
}

/// With a `/` at its beginning and none at its end; none at all is empty.
fn path_prefix(text: &str) -> Result<String, String> {
    let name = text.trim_matches('/');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    if name.is_empty() {
        Ok(String::new())
    } else if name.bytes().all(plain) {
        Ok(format!("/{name}"))
    } else {
        Err("give a path of letters, digits and `-._~/`".to_owned())
    }
}

impl TableArgs {
    /// The names, for the migrator.
    #[must_use]
    pub fn names(&self) -> TableNames {
        TableNames {
            runs: self.table_runs.clone(),
            metadata: self.table_metadata.clone(),
            schema: given(self.db_schema.as_ref()).cloned(),
        }
    }
}

/// An empty value is none: charts and shells set empty ones.
fn given(value: Option<&String>) -> Option<&String> {
    value.filter(|text| !text.is_empty())
}

impl DatabaseArgs {
    /// Reads the parameters.
    ///
    /// # Errors
    /// If they are malformed or contradict each other; the message says which, and no secret.
    pub fn connector(&self) -> anyhow::Result<Connector> {
        self.connector_to(None)
    }

    /// The same, with another host where one is given: a connection string's too.
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

    /// Each part goes to the driver as it is: a password may hold any character, so no connection
    /// string is built from parts.
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
        // The metadata service passes on these modes alone; with any other it drops the
        // certificates too, and the client library's default, `prefer`, applies.
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

/// The same parameters for another host. Which of several hosts to take, and in what state, was
/// meant for the others.
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
    // The driver's message may quote a part of the string, so it is not passed on.
    let mut config: tokio_postgres::Config = rest.parse().map_err(|_| {
        anyhow::anyhow!("the connection string is malformed, or has a parameter that is not known")
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
    fn a_path_prefix_is_a_path() {
        for (text, prefix) in [("", ""), ("/", ""), ("/a/", "/a"), ("a/b-c", "/a/b-c")] {
            assert_eq!(path_prefix(text).as_deref(), Ok(prefix));
        }
        assert!(path_prefix("/a b").is_err());
        assert!(path_prefix("/{x}").is_err());
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
