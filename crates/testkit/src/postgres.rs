//! A private PostgreSQL server, started from the machine's own programs and removed after use.
//!
//! Owns the server's directory and port, and its start, crash, restart and stop. Promises that
//! nothing is left behind, however this process ends: a small shell guard (`postgres/guard.sh`) is
//! the server's parent and removes it as soon as its pipe to this process closes. The server
//! listens on the loopback address only and trusts every connection. Works under any tokio runtime
//! and is not bound to the one that started it, so that tests can share a server. Called by the
//! tests, the benchmarks and the demo.

mod guard;
mod home;
mod processes;
mod programs;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Config, NoTls};

use guard::{Event, Guard};
use home::Home;

/// How long creating, starting or stopping a server may take before it counts as a failure.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Below the range for outgoing connections: a restarted server finds its port free again, and a
/// client that connects meanwhile cannot be connected to itself.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// Where the server's configuration differs from the default. It survives the crash of any process,
/// but not that of the machine.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("max_connections", "200"),
    ("autovacuum", "on"),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("logging_collector", "off"),
    ("log_line_prefix", "%m [%p] %d %a "),
];

/// How to start a server: [`Options::default`] is the fast one for tests.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Settings (name, value) that override the defaults, in the order given.
    pub settings: Vec<(String, String)>,
    /// The directory of `initdb` and `postgres`; searched for when not given.
    pub programs: Option<PathBuf>,
}

impl Options {
    /// The same options with one more setting.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A running server (or a crashed one, between [`Postgres::kill9`] and [`Postgres::start_again`]).
/// Dropping it stops the server and removes its directory in the background.
#[derive(Debug)]
pub struct Postgres {
    guard: Guard,
    home: Home,
    programs: PathBuf,
    port: u16,
    version: String,
}

impl Postgres {
    /// Creates a server in a fresh directory and returns once it answers queries.
    ///
    /// # Errors
    /// When no programs are found, or the server cannot be created or started: the error carries
    /// the end of its log.
    pub async fn start(options: Options) -> Result<Self> {
        let programs = match options.programs {
            Some(directory) => directory,
            None => programs::find()?,
        };
        let home = Home::create()?;
        let guard = Guard::start(&programs, &home)?;
        let mut server = Self {
            guard,
            home,
            programs,
            port: 0,
            version: String::new(),
        };

        if server.guard.send("init", TIMEOUT).await? != Event::Initialized {
            bail!(
                "could not create a database cluster with {}\n{}",
                server.programs.display(),
                server.log_tail(20)
            );
        }
        let socket_directory = server.home.path().display().to_string();
        server.configure(SETTINGS)?;
        server.configure(&[("unix_socket_directories", &socket_directory)])?;
        for (name, value) in &options.settings {
            server.configure(&[(name, value)])?;
        }
        server.start_on_a_free_port().await?;
        Ok(server)
    }

    async fn start_on_a_free_port(&mut self) -> Result<()> {
        for _ in 0..5 {
            self.port = free_port()?;
            self.configure(&[("port", &self.port.to_string())])?;
            match self.launch().await {
                Ok(version) => {
                    self.version = version;
                    return Ok(());
                }
                Err(_) if self.log_tail(10).contains("Address already in use") => {}
                Err(error) => return Err(error),
            }
        }
        bail!(
            "found no free port for the server in five attempts\n{}",
            self.log_tail(20)
        )
    }

    /// The address that the server listens on.
    pub fn host(&self) -> &'static str {
        "127.0.0.1"
    }

    /// The port that the server listens on: always the same one.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host and port, for a proxy in between.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// A connection URI of the superuser `postgres`.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgresql://postgres@{}:{}/{database}",
            self.host(),
            self.port
        )
    }

    /// Connection parameters of the superuser `postgres`.
    pub fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config
            .host(self.host())
            .port(self.port)
            .user("postgres")
            .dbname(database);
        config
    }

    /// The server's version, such as `15.8`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The first number of the version, such as `15`.
    pub fn major(&self) -> u32 {
        let digits: String = self
            .version
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        digits.parse().unwrap_or_default()
    }

    /// The directory of the server's programs.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// A client program, such as `pg_dump`, that works with this server.
    ///
    /// # Errors
    /// When this machine has none: the text says which one is needed.
    pub fn client_program(&self, name: &str) -> Result<PathBuf, String> {
        programs::find_client(name, &self.programs, self.major())
            .ok_or_else(|| format!("needs {name} of PostgreSQL {} or later", self.major()))
    }

    /// The server's private directory: data, log and socket.
    pub fn directory(&self) -> &Path {
        self.home.path()
    }

    /// The process id of the postmaster, while it runs.
    pub fn pid(&self) -> Option<u32> {
        match self.guard.latest() {
            Event::Started(pid) => Some(pid),
            _ => None,
        }
    }

    /// The last lines of the server's log.
    pub fn log_tail(&self, lines: usize) -> String {
        let bytes = fs::read(self.home.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Adds settings that take effect with the next start; later ones win.
    ///
    /// # Errors
    /// When the configuration file cannot be written.
    pub fn configure(&self, settings: &[(&str, &str)]) -> Result<()> {
        let path = self.home.data().join("postgresql.conf");
        let mut text = String::new();
        for (name, value) in settings {
            text += &format!("\n{name} = '{}'\n", value.replace('\'', "''"));
        }
        OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write to {}", path.display()))
    }

    /// Kills all of the server's processes at once, as a crash does, and returns when they are
    /// gone. Committed rows are there after [`Postgres::start_again`].
    ///
    /// # Errors
    /// When the server does not run, or does not die.
    pub async fn kill9(&self) -> Result<()> {
        let postmaster = self.pid().context("the server does not run")?;
        // Stopped first, so that it can neither fork a child nor clean up after one.
        processes::signal("STOP", &[postmaster]).await?;
        let mut targets = processes::children(postmaster).await?;
        targets.push(postmaster);
        processes::signal("KILL", &targets).await?;
        self.guard
            .until(TIMEOUT, |event| !matches!(event, Event::Started(_)))
            .await?;
        // A remaining backend would hold the shared memory, and the next start would be refused.
        let deadline = Instant::now() + TIMEOUT;
        while processes::any_alive(&targets).await? {
            if Instant::now() > deadline {
                bail!("processes of the killed server still run: {targets:?}");
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Starts the server again after [`Postgres::kill9`], with the same port and data, and returns
    /// once it answers queries.
    ///
    /// # Errors
    /// When it still runs or does not come up: the error carries the end of its log.
    pub async fn start_again(&self) -> Result<()> {
        if let Some(pid) = self.pid() {
            bail!("the server still runs, as process {pid}");
        }
        self.launch().await.map(drop)
    }

    /// Stops the server (fast shutdown: sessions are terminated) and starts it again.
    ///
    /// # Errors
    /// When it does not stop or does not come up.
    pub async fn restart(&self) -> Result<()> {
        self.shut_down().await?;
        self.start_again().await
    }

    /// Stops the server and returns when its directory is removed as well.
    ///
    /// # Errors
    /// When it does not stop.
    pub async fn stop(self) -> Result<()> {
        self.shut_down().await?;
        self.guard.close();
        self.guard
            .until(TIMEOUT, |event| *event == Event::Gone)
            .await
            .map(drop)
    }

    /// A fast shutdown: sessions are terminated, everything is written. [`Postgres::start_again`] starts
    /// it again.
    ///
    /// # Errors
    /// When it does not stop.
    pub async fn shut_down(&self) -> Result<()> {
        let Some(postmaster) = self.pid() else {
            return Ok(());
        };
        processes::signal("INT", &[postmaster]).await?;
        self.guard
            .until(TIMEOUT, |event| !matches!(event, Event::Started(_)))
            .await?;
        Ok(())
    }

    /// Lets the guard start the server and waits until it answers; returns its version.
    async fn launch(&self) -> Result<String> {
        self.guard.send("start", TIMEOUT).await?;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let error = match timeout(Duration::from_secs(5), self.query_version()).await {
                Ok(Ok(version)) => return Ok(version),
                Ok(Err(error)) => error,
                Err(_) => anyhow!("no answer within five seconds"),
            };
            if !matches!(self.guard.latest(), Event::Started(_)) {
                bail!("the server ended while it started\n{}", self.log_tail(20));
            }
            if Instant::now() > deadline {
                return Err(
                    error.context(format!("the server does not answer\n{}", self.log_tail(20)))
                );
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn query_version(&self) -> Result<String> {
        let (client, connection) = self.config("postgres").connect(NoTls).await?;
        let connection = tokio::spawn(connection);
        let row = client.query_one("show server_version", &[]).await?;
        let version: &str = row.get(0);
        // Distributions append text to the number.
        let number = version.split(' ').next().unwrap_or(version).to_owned();
        drop(client);
        connection.await??;
        Ok(number)
    }
}

/// A port that is free at this moment.
fn free_port() -> Result<u16> {
    (0..200)
        .map(|_| rand::random_range(PORTS))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .with_context(|| format!("no free port on 127.0.0.1 in {PORTS:?}"))
}
