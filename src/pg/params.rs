//! The parameters of a connection, under libpq's names and with libpq's meanings.
//!
//! Owns the list of keywords: each is supported, or refused by its name; none is accepted and ignored.
//! [`ParamsSource`] is what an operator configured. It is resolved anew for each connection, so that a
//! password, a password file or a service file may change under a running process.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::config::ChannelBinding;

use super::dsn::{self, DsnError, Pair};
use super::passfile;
use super::service;
use super::tls::{TlsMode, TlsParams};

/// Connection parameters that cannot be used. The message contains the names of parameters, and no
/// value that may be secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParamsError {
    /// The string cannot be parsed.
    #[error(transparent)]
    Malformed(#[from] MalformedDsn),
    /// No version of libpq has this parameter.
    #[error("unknown connection parameter {0}")]
    Unknown(String),
    /// libpq has this parameter, and it has no effect here.
    #[error("connection parameter \"{0}\" is not supported")]
    Unsupported(String),
    /// A value cannot be used.
    #[error("connection parameter \"{name}\" {problem}")]
    Invalid {
        /// The parameter's name.
        name: &'static str,
        /// What is wrong with its value.
        problem: String,
    },
    /// Several parameters contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
    /// A file that holds parameters cannot be used.
    #[error("{problem} {}", path.display())]
    File {
        /// What is wrong, up to the name of the file.
        problem: String,
        /// The file.
        path: PathBuf,
        /// The cause, where there is one.
        #[source]
        source: Option<std::io::Error>,
    },
}

/// A malformed connection string.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct MalformedDsn(DsnError);

impl From<DsnError> for ParamsError {
    fn from(error: DsnError) -> Self {
        Self::Malformed(MalformedDsn(error))
    }
}

/// Which server may be connected to, as `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TargetSession {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// A limit on one attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    Unlimited,
    After(Duration),
}

/// One entry of the list of hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// A name, an address or, if it begins with `/`, the directory of a Unix socket.
    pub(crate) host: Option<String>,
    /// An address that saves the look-up of the name.
    pub(crate) hostaddr: Option<IpAddr>,
    pub(crate) port: u16,
}

impl Target {
    pub(crate) fn is_unix(&self) -> bool {
        self.hostaddr.is_none() && self.host.as_ref().is_some_and(|host| host.starts_with('/'))
    }

    /// The name under which messages and the password file know it.
    pub(crate) fn name(&self) -> String {
        match (&self.host, self.hostaddr) {
            (Some(host), _) => host.clone(),
            (None, Some(address)) => address.to_string(),
            (None, None) => DEFAULT_HOST.to_owned(),
        }
    }
}

/// `TCP_KEEPIDLE` and its companions; none for the system's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalives {
    pub(crate) enabled: bool,
    pub(crate) idle: Option<Duration>,
    pub(crate) interval: Option<Duration>,
    pub(crate) count: Option<u32>,
}

/// All parameters of one connection.
#[derive(Debug, Clone)]
pub(crate) struct Params {
    pub(crate) targets: Vec<Target>,
    pub(crate) user: String,
    pub(crate) dbname: Option<String>,
    pub(crate) password: Option<SecretString>,
    pub(crate) passfile: Option<PathBuf>,
    pub(crate) options: Option<String>,
    pub(crate) application_name: String,
    pub(crate) connect_timeout: Option<Limit>,
    pub(crate) keepalives: Keepalives,
    pub(crate) tcp_user_timeout: Option<Duration>,
    pub(crate) target_session: TargetSession,
    pub(crate) shuffle: bool,
    pub(crate) channel_binding: ChannelBinding,
    pub(crate) tls: TlsParams,
}

/// Where no host is given. libpq would try a Unix socket first, which no container has.
const DEFAULT_HOST: &str = "localhost";

/// Where no user is given.
const DEFAULT_USER: &str = "postgres";

const APPLICATION_NAME: &str = "status-indexer";

/// The supported keywords of libpq, with their environment variables.
const SUPPORTED: [(&str, Option<&str>); 36] = [
    ("host", Some("PGHOST")),
    ("hostaddr", Some("PGHOSTADDR")),
    ("port", Some("PGPORT")),
    ("dbname", Some("PGDATABASE")),
    ("user", Some("PGUSER")),
    ("password", Some("PGPASSWORD")),
    ("passfile", Some("PGPASSFILE")),
    ("service", Some("PGSERVICE")),
    ("servicefile", Some("PGSERVICEFILE")),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    ("options", Some("PGOPTIONS")),
    ("application_name", Some("PGAPPNAME")),
    ("fallback_application_name", None),
    ("client_encoding", Some("PGCLIENTENCODING")),
    ("keepalives", None),
    ("keepalives_idle", None),
    ("keepalives_interval", None),
    ("keepalives_count", None),
    ("tcp_user_timeout", None),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    ("load_balance_hosts", Some("PGLOADBALANCEHOSTS")),
    ("channel_binding", Some("PGCHANNELBINDING")),
    ("gssencmode", Some("PGGSSENCMODE")),
    ("sslmode", Some("PGSSLMODE")),
    ("sslnegotiation", Some("PGSSLNEGOTIATION")),
    ("sslcert", Some("PGSSLCERT")),
    ("sslkey", Some("PGSSLKEY")),
    ("sslcertmode", Some("PGSSLCERTMODE")),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("sslcrl", Some("PGSSLCRL")),
    ("sslsni", Some("PGSSLSNI")),
    ("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION")),
    ("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION")),
    ("sslcompression", Some("PGSSLCOMPRESSION")),
    ("min_protocol_version", Some("PGMINPROTOCOLVERSION")),
    ("max_protocol_version", Some("PGMAXPROTOCOLVERSION")),
];

/// The other keywords of libpq.
const UNSUPPORTED: [(&str, Option<&str>); 16] = [
    ("sslpassword", None),
    ("sslcrldir", Some("PGSSLCRLDIR")),
    ("sslkeylogfile", None),
    ("requirepeer", Some("PGREQUIREPEER")),
    ("require_auth", Some("PGREQUIREAUTH")),
    ("krbsrvname", Some("PGKRBSRVNAME")),
    ("gsslib", Some("PGGSSLIB")),
    ("gssdelegation", Some("PGGSSDELEGATION")),
    ("replication", None),
    ("scram_client_key", None),
    ("scram_server_key", None),
    ("oauth_issuer", None),
    ("oauth_client_id", None),
    ("oauth_client_secret", None),
    ("oauth_scope", None),
    ("oauth_ca_file", None),
];

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
            Base::Dsn(dsn) => {
                let values = Values::new(dsn::parse(dsn.expose_secret())?)?;
                self.check_one_password(&values)?;
                values.with_defaults(env)?
            }
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
            let port = values.take("port").unwrap_or_default();
            let first = port.split(',').next().unwrap_or_default().to_owned();
            values.take("hostaddr");
            values.take("target_session_attrs");
            values.set("host", host.clone());
            values.set("port", first);
        }
        let mut params = values.params(env)?;
        if params.connect_timeout.is_none() {
            params.connect_timeout = Some(Limit::After(self.default_limit));
        }
        Ok(params)
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
        Ok(params.passfile.as_ref().and_then(|path| {
            let name = target.name();
            // The default sockets, as PostgreSQL and as Debian build libpq.
            let is_default = ["/tmp", "/var/run/postgresql"].contains(&name.as_str());
            let host = if is_default { DEFAULT_HOST } else { &name };
            passfile::find(
                path,
                &passfile::Key {
                    host,
                    port: target.port,
                    dbname: params.dbname.as_deref().unwrap_or(&params.user),
                    user: &params.user,
                },
            )
        }))
    }
}

fn read_password(path: &Path) -> Result<SecretString, ParamsError> {
    let text = std::fs::read_to_string(path).map_err(|source| ParamsError::File {
        problem: "cannot read the password from".to_owned(),
        path: path.to_owned(),
        source: Some(source),
    })?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).into())
}

/// The values by name. Names are checked when it is made.
#[derive(Debug)]
struct Values(Vec<Pair>);

impl Values {
    fn new(pairs: Vec<Pair>) -> Result<Self, ParamsError> {
        let mut values = Self(Vec::with_capacity(pairs.len()));
        for (name, value) in pairs {
            // The name before PostgreSQL 8.0.
            let (name, value) = if name == "requiressl" {
                let mode = if value.starts_with('1') {
                    "require"
                } else {
                    "prefer"
                };
                ("sslmode".to_owned(), mode.to_owned())
            } else {
                (name, value)
            };
            check_name(&name, &value)?;
            values.set(&name, value);
        }
        Ok(values)
    }

    /// Adds what a service and the environment contain and the connection string does not.
    fn with_defaults(mut self, env: Env<'_>) -> Result<Self, ParamsError> {
        let given = |name: &str, variable: &str| {
            self.get(name).map(str::to_owned).or_else(|| env(variable))
        };
        if let Some(name) = given("service", "PGSERVICE") {
            let file = given("servicefile", "PGSERVICEFILE").map(PathBuf::from);
            for (name, value) in service::find(&name, file, env)? {
                check_name(&name, &value)?;
                self.add(&name, value);
            }
        }
        for (name, variable) in SUPPORTED.iter().chain(&UNSUPPORTED) {
            let Some(value) = variable.and_then(env) else {
                continue;
            };
            check_name(name, &value)?;
            self.add(name, value);
        }
        Ok(self)
    }

    fn set(&mut self, name: &str, value: String) {
        self.take(name);
        self.0.push((name.to_owned(), value));
    }

    fn add(&mut self, name: &str, value: String) {
        if !self.0.iter().any(|(known, _)| known == name) {
            self.0.push((name.to_owned(), value));
        }
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(at).1)
    }

    /// An empty value counts as unset.
    fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    fn owned(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    fn integer(&self, name: &'static str) -> Result<Option<i32>, ParamsError> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        match text.trim().parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(invalid(name, "must be an integer")),
        }
    }

    /// A duration; none for zero or less, which stands for the system's default.
    fn duration(
        &self,
        name: &'static str,
        unit: fn(u64) -> Duration,
        default: Duration,
    ) -> Result<Option<Duration>, ParamsError> {
        Ok(match self.integer(name)? {
            None => Some(default),
            Some(value) => u64::try_from(value)
                .ok()
                .filter(|value| *value > 0)
                .map(unit),
        })
    }

    /// One of a few words.
    fn choice<T: Copy>(
        &self,
        name: &'static str,
        default: T,
        choices: &[(&str, T)],
    ) -> Result<T, ParamsError> {
        let Some(text) = self.get(name) else {
            return Ok(default);
        };
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
            return Ok(*choice);
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        Err(invalid(
            name,
            &format!("must be one of: {}", words.join(", ")),
        ))
    }

    fn params(&self, env: Env<'_>) -> Result<Params, ParamsError> {
        self.check_constants()?;
        let targets = self.targets()?;
        let tls = self.tls(&targets, env)?;
        Ok(Params {
            targets,
            user: self
                .owned("user")
                .unwrap_or_else(|| DEFAULT_USER.to_owned()),
            dbname: self.owned("dbname"),
            password: self.get("password").map(SecretString::from),
            passfile: self
                .get("passfile")
                .map(PathBuf::from)
                .or_else(|| Some(Path::new(&env("HOME")?).join(".pgpass"))),
            options: self.owned("options"),
            application_name: self
                .owned("application_name")
                .or_else(|| self.owned("fallback_application_name"))
                .unwrap_or_else(|| APPLICATION_NAME.to_owned()),
            connect_timeout: self.integer("connect_timeout")?.map(|secs| match secs {
                ..=0 => Limit::Unlimited,
                // libpq's minimum.
                1 => Limit::After(Duration::from_secs(2)),
                secs => Limit::After(Duration::from_secs(secs.unsigned_abs().into())),
            }),
            keepalives: self.keepalives()?,
            tcp_user_timeout: self.duration(
                "tcp_user_timeout",
                Duration::from_millis,
                Duration::from_secs(10),
            )?,
            target_session: self.choice(
                "target_session_attrs",
                TargetSession::Any,
                &[
                    ("any", TargetSession::Any),
                    ("read-write", TargetSession::ReadWrite),
                    ("read-only", TargetSession::ReadOnly),
                    ("primary", TargetSession::Primary),
                    ("standby", TargetSession::Standby),
                    ("prefer-standby", TargetSession::PreferStandby),
                ],
            )?,
            shuffle: self.choice(
                "load_balance_hosts",
                false,
                &[("disable", false), ("random", true)],
            )?,
            channel_binding: self.choice(
                "channel_binding",
                ChannelBinding::Prefer,
                &[
                    ("disable", ChannelBinding::Disable),
                    ("prefer", ChannelBinding::Prefer),
                    ("require", ChannelBinding::Require),
                ],
            )?,
            tls,
        })
    }

    fn keepalives(&self) -> Result<Keepalives, ParamsError> {
        let count = self.integer("keepalives_count")?.unwrap_or(3);
        Ok(Keepalives {
            enabled: self.integer("keepalives")?.unwrap_or(1) != 0,
            idle: self.duration(
                "keepalives_idle",
                Duration::from_secs,
                Duration::from_secs(10),
            )?,
            interval: self.duration(
                "keepalives_interval",
                Duration::from_secs,
                Duration::from_secs(3),
            )?,
            count: u32::try_from(count).ok().filter(|count| *count > 0),
        })
    }

    /// Parameters that are supported with some of their values: those that this client has in effect.
    fn check_constants(&self) -> Result<(), ParamsError> {
        let in_effect: [(&str, &[&str]); 5] = [
            ("gssencmode", &["disable", "prefer"]),
            ("client_encoding", &["auto", "utf8", "utf-8", "unicode"]),
            ("sslcompression", &["0"]),
            ("min_protocol_version", &["3.0"]),
            ("max_protocol_version", &["3.0", "latest"]),
        ];
        for (name, values) in in_effect {
            let Some(text) = self.get(name) else { continue };
            let text = text.to_ascii_lowercase();
            if !values.contains(&text.as_str()) {
                return Err(invalid(
                    name,
                    &format!("is supported only as: {}", values.join(", ")),
                ));
            }
        }
        Ok(())
    }

    fn targets(&self) -> Result<Vec<Target>, ParamsError> {
        let list = |name| -> Vec<&str> {
            self.get(name)
                .map_or_else(Vec::new, |text| text.split(',').collect())
        };
        let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
        if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
            return Err(invalid("hostaddr", "must have as many entries as \"host\""));
        }
        let count = hosts.len().max(addresses.len()).max(1);
        if ports.len() > 1 && ports.len() != count {
            return Err(invalid("port", "must have one entry, or one for each host"));
        }
        (0..count)
            .map(|at| {
                let host = hosts.get(at).filter(|host| !host.is_empty());
                if host.is_some_and(|host| host.starts_with('@')) {
                    return Err(invalid("host", "cannot name an abstract Unix socket"));
                }
                let hostaddr = addresses.get(at).filter(|address| !address.is_empty());
                let hostaddr = hostaddr.map(|address| address.parse()).transpose();
                let hostaddr =
                    hostaddr.map_err(|_| invalid("hostaddr", "must be an IP address"))?;
                let port = ports.get(at).or_else(|| ports.first()).copied();
                Ok(Target {
                    host: match (host, hostaddr) {
                        (Some(host), _) => Some((*host).to_owned()),
                        (None, Some(_)) => None,
                        (None, None) => Some(DEFAULT_HOST.to_owned()),
                    },
                    hostaddr,
                    port: port_number(port.unwrap_or_default())?,
                })
            })
            .collect()
    }

    fn tls(&self, targets: &[Target], env: Env<'_>) -> Result<TlsParams, ParamsError> {
        let modes = [
            ("disable", TlsMode::Disable),
            ("allow", TlsMode::Allow),
            ("prefer", TlsMode::Prefer),
            ("require", TlsMode::Require),
            ("verify-ca", TlsMode::VerifyCa),
            ("verify-full", TlsMode::VerifyFull),
        ];
        let system_roots = self.get("sslrootcert") == Some("system");
        let default = if system_roots {
            TlsMode::VerifyFull
        } else {
            TlsMode::Prefer
        };
        let mode = self.choice("sslmode", default, &modes)?;
        if system_roots && mode != TlsMode::VerifyFull {
            return Err(ParamsError::Contradiction(
                "sslrootcert=system requires sslmode=verify-full: any other mode would accept a \
                 certificate of any host",
            ));
        }
        let direct = self.choice(
            "sslnegotiation",
            false,
            &[("postgres", false), ("direct", true)],
        )?;
        if direct && matches!(mode, TlsMode::Disable | TlsMode::Allow | TlsMode::Prefer) {
            return Err(ParamsError::Contradiction(
                "sslnegotiation=direct requires sslmode=require, verify-ca or verify-full",
            ));
        }
        if mode == TlsMode::VerifyFull && targets.iter().any(|target| target.host.is_none()) {
            return Err(ParamsError::Contradiction(
                "sslmode=verify-full requires \"host\" beside \"hostaddr\": the certificate is \
                 verified for that name",
            ));
        }
        let home = env("HOME").map(|home| Path::new(&home).join(".postgresql"));
        let path = |name: &str, default: &str| {
            self.get(name).map(PathBuf::from).or_else(|| {
                let path = home.as_ref()?.join(default);
                path.exists().then_some(path)
            })
        };
        let sends_certificate =
            self.choice("sslcertmode", true, &[("disable", false), ("allow", true)])?;
        let cert_path = path("sslcert", "postgresql.crt").filter(|_| sends_certificate);
        let versions = [("tlsv1", 0), ("tlsv1.1", 1), ("tlsv1.2", 2), ("tlsv1.3", 3)];
        let version = |name, default| {
            let lower = self.get(name).map(str::to_ascii_lowercase);
            let lower = Self(
                lower
                    .map(|text| (String::from(name), text))
                    .into_iter()
                    .collect(),
            );
            lower.choice(name, default, &versions)
        };
        let (min, max) = (
            version("ssl_min_protocol_version", 2)?,
            version("ssl_max_protocol_version", 3)?,
        );
        if max < 2 {
            return Err(invalid(
                "ssl_max_protocol_version",
                "must be TLSv1.2 or TLSv1.3: earlier versions are not supported",
            ));
        }
        if min > max {
            return Err(ParamsError::Contradiction(
                "ssl_min_protocol_version is greater than ssl_max_protocol_version",
            ));
        }
        Ok(TlsParams {
            mode,
            direct,
            key_path: match cert_path {
                Some(_) => path("sslkey", "postgresql.key"),
                None if sends_certificate => self.get("sslkey").map(PathBuf::from),
                None => None,
            },
            cert_path,
            root_cert_path: path("sslrootcert", "root.crt").filter(|_| !system_roots),
            crl_path: path("sslcrl", "root.crl"),
            sni: self.choice("sslsni", true, &[("0", false), ("1", true)])?,
            tls12: min <= 2,
            tls13: max >= 3,
        })
    }
}

fn port_number(text: &str) -> Result<u16, ParamsError> {
    match text.trim() {
        "" => Ok(5432),
        text => match text.parse() {
            Ok(0) | Err(_) => Err(invalid("port", "must be a number from 1 to 65535")),
            Ok(port) => Ok(port),
        },
    }
}

fn invalid(name: &'static str, problem: &str) -> ParamsError {
    ParamsError::Invalid {
        name,
        problem: problem.to_owned(),
    }
}

/// Values that state the only behaviour that exists are accepted.
fn is_off(value: &str) -> bool {
    ["", "0", "false", "off", "no"].contains(&value)
}

fn check_name(name: &str, value: &str) -> Result<(), ParamsError> {
    let is = |known: &&(&str, Option<&str>)| known.0 == name;
    if SUPPORTED.iter().any(|known| is(&known)) {
        return Ok(());
    }
    if UNSUPPORTED.iter().any(|known| is(&known)) {
        let without_effect =
            value.is_empty() || (["replication", "gssdelegation"].contains(&name) && is_off(value));
        if without_effect {
            return Ok(());
        }
        return Err(ParamsError::Unsupported(name.to_owned()));
    }
    // Anything else than a name may be a part of a password.
    let is_name =
        (1..=40).contains(&name.len()) && name.bytes().all(|c| c == b'_' || c.is_ascii_lowercase());
    Err(ParamsError::Unknown(if is_name {
        format!("\"{name}\"")
    } else {
        "(its name is not shown because it is not a name)".to_owned()
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(7);

    fn source(dsn: &str) -> ParamsSource {
        ParamsSource::dsn(dsn.into(), LIMIT)
    }

    fn params(dsn: &str) -> Params {
        let resolved = source(dsn).resolve(&|_| None);
        resolved.unwrap_or_else(|error| panic!("{dsn}: {error}"))
    }

    fn problem(dsn: &str) -> String {
        let refused = source(dsn).resolve(&|_| None);
        crate::error::chain(&refused.expect_err(dsn))
    }

    fn targets(dsn: &str) -> Vec<(String, u16)> {
        let targets = params(dsn).targets;
        targets
            .iter()
            .map(|target| (target.name(), target.port))
            .collect()
    }

    #[test]
    fn every_keyword_of_libpq_is_supported_or_refused_by_its_name() {
        for (name, _) in UNSUPPORTED {
            let text = problem(&format!("host=h {name}=secret"));
            assert_eq!(
                text,
                format!("connection parameter \"{name}\" is not supported")
            );
        }
        for (name, _) in SUPPORTED {
            assert!(!problem_or_empty(name).contains("not supported"), "{name}");
        }
        assert_eq!(
            problem("host=h nosuch=1"),
            "unknown connection parameter \"nosuch\""
        );
        assert_eq!(
            problem("postgresql://h/d?nosuch=1"),
            "unknown connection parameter \"nosuch\""
        );
        let text = problem("password=a b?c=secret");
        assert!(!text.contains("b?c") && !text.contains("secret"), "{text}");
    }

    fn problem_or_empty(name: &str) -> String {
        match source(&format!("{name}=1")).resolve(&|_| None) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn values_that_would_be_ignored_are_refused_by_the_name_of_their_parameter() {
        for (pair, name) in [
            ("gssencmode=require", "gssencmode"),
            ("client_encoding=latin1", "client_encoding"),
            ("sslcompression=1", "sslcompression"),
            ("sslcertmode=require", "sslcertmode"),
            ("min_protocol_version=3.2", "min_protocol_version"),
            (
                "ssl_max_protocol_version=TLSv1.1",
                "ssl_max_protocol_version",
            ),
            (
                "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
                "ssl_min",
            ),
            ("sslmode=secretly", "sslmode"),
            ("target_session_attrs=secretly", "target_session_attrs"),
            ("load_balance_hosts=secretly", "load_balance_hosts"),
            ("channel_binding=secretly", "channel_binding"),
            ("connect_timeout=secretly", "connect_timeout"),
            ("keepalives_count=secretly", "keepalives_count"),
            ("port=secretly", "port"),
            ("port=0", "port"),
            ("port=65536", "port"),
            ("port=1,2", "port"),
            ("host=a,b hostaddr=::1", "hostaddr"),
            ("hostaddr=secretly", "hostaddr"),
            ("host=@secretly", "host"),
            ("sslrootcert=system sslmode=verify-ca", "sslrootcert=system"),
            ("sslnegotiation=direct", "sslnegotiation=direct"),
            ("hostaddr=::1 sslmode=verify-full", "host"),
        ] {
            let text = problem(pair);
            assert!(text.contains(name), "{pair}: {text}");
            assert!(!text.contains("secret"), "{text}");
        }
        for pair in [
            "gssencmode=prefer",
            "client_encoding=UTF8",
            "client_encoding=auto",
            "sslcompression=0",
            "sslcrldir=",
            "replication=off",
            "max_protocol_version=latest",
            "ssl_min_protocol_version=TLSv1",
        ] {
            params(pair);
        }
    }

    #[test]
    fn hosts_addresses_and_ports_are_lists_of_one_length() {
        let of = |pairs: &[(&str, u16)]| -> Vec<(String, u16)> {
            pairs
                .iter()
                .map(|(name, port)| ((*name).to_owned(), *port))
                .collect()
        };
        assert_eq!(targets(""), of(&[("localhost", 5432)]));
        assert_eq!(targets("host=a,b port=7"), of(&[("a", 7), ("b", 7)]));
        assert_eq!(
            targets("host=a,,c port=1,,3"),
            of(&[("a", 1), ("localhost", 5432), ("c", 3)])
        );
        assert_eq!(
            targets("postgresql://a,b:2/d"),
            of(&[("a", 5432), ("b", 2)])
        );
        assert_eq!(targets("hostaddr=::1"), of(&[("::1", 5432)]));
        assert_eq!(targets("host=a hostaddr=::1"), of(&[("a", 5432)]));
        assert!(params("host=/run").targets[0].is_unix());
        assert!(!params("host=/run hostaddr=::1").targets[0].is_unix());
    }

    #[test]
    fn times_are_in_libpqs_units_and_zero_means_the_systems_default() {
        let defaults = params("");
        assert_eq!(defaults.tcp_user_timeout, Some(Duration::from_secs(10)));
        assert_eq!(defaults.keepalives.idle, Some(Duration::from_secs(10)));
        assert_eq!(defaults.connect_timeout, Some(Limit::After(LIMIT)));
        let given = params(
            "tcp_user_timeout=8000 keepalives_idle=20 keepalives_interval=0 keepalives_count=5 \
             connect_timeout=3",
        );
        assert_eq!(given.tcp_user_timeout, Some(Duration::from_secs(8)));
        assert_eq!(
            given.keepalives,
            Keepalives {
                enabled: true,
                idle: Some(Duration::from_secs(20)),
                interval: None,
                count: Some(5),
            }
        );
        assert_eq!(
            given.connect_timeout,
            Some(Limit::After(Duration::from_secs(3)))
        );
        assert_eq!(params("tcp_user_timeout=0").tcp_user_timeout, None);
        assert!(!params("keepalives=0").keepalives.enabled);
        assert_eq!(
            params("connect_timeout=0").connect_timeout,
            Some(Limit::Unlimited)
        );
        assert_eq!(
            params("connect_timeout=-1").connect_timeout,
            Some(Limit::Unlimited)
        );
    }

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

    #[test]
    fn tls_parameters_have_libpqs_defaults() {
        let tls = params("").tls;
        assert_eq!(tls.mode, TlsMode::Prefer);
        assert!(tls.sni && tls.tls12 && tls.tls13 && !tls.direct);
        assert_eq!(params("sslrootcert=system").tls.mode, TlsMode::VerifyFull);
        assert_eq!(params("requiressl=1").tls.mode, TlsMode::Require);
        assert!(!params("ssl_min_protocol_version=TLSv1.3").tls.tls12);
        assert!(!params("ssl_max_protocol_version=tlsv1.2").tls.tls13);
        let off = params("sslcert=c sslkey=k sslcertmode=disable").tls;
        assert_eq!((off.cert_path, off.key_path), (None, None));
    }
}
