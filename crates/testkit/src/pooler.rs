//! A real PgBouncer in front of a database, in transaction mode unless a test sets another.
//!
//! Owns the process and its directory. Promises that it ends with the test, and that all of its
//! clients share a few connections to the server, as one role. Called by the tests of polling mode.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::wait::eventually;

/// Where distributions install the program, apart from PATH.
const PROGRAMS: &[&str] = &["pgbouncer", "/usr/sbin/pgbouncer"];

/// A running pooler.
#[derive(Debug)]
pub struct Pooler {
    address: SocketAddr,
    _process: Child,
    _directory: TempDir,
}

impl Pooler {
    /// A pooler with the given number of connections to a server, all of them as this role.
    ///
    /// # Panics
    /// If it cannot be started.
    pub async fn to(server: SocketAddr, role: &str, connections: u32) -> Self {
        Self::with(server, role, connections, &[]).await
    }

    /// The same with more settings; later ones win.
    ///
    /// # Panics
    /// If it cannot be started.
    pub async fn with(
        server: SocketAddr,
        role: &str,
        connections: u32,
        more: &[(&str, &str)],
    ) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let port = free_port();
        let settings = directory.path().join("pgbouncer.ini");
        let mut text = format!(
            "[databases]
* = host={} port={} user={role}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
",
            server.ip(),
            server.port()
        );
        for (name, value) in more {
            text += &format!("{name} = {value}\n");
        }
        std::fs::write(&settings, text).expect("a fresh file");
        let process = start(&settings);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        eventually(Duration::from_secs(20), "the pooler listens", async || {
            TcpStream::connect(address).await.is_ok()
        })
        .await;
        Self {
            address,
            _process: process,
            _directory: directory,
        }
    }

    /// Where to connect instead of the server.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The version of the program, such as (1, 18).
///
/// # Panics
/// If there is none.
#[must_use]
pub fn version() -> (u32, u32) {
    let outputs = PROGRAMS.iter().filter_map(|program| {
        let output = std::process::Command::new(program)
            .arg("--version")
            .output();
        output.ok().map(|output| output.stdout)
    });
    let text = outputs.map(|text| String::from_utf8_lossy(&text).into_owned());
    let numbers = text.flat_map(|text| {
        let version = text
            .lines()
            .next()
            .unwrap_or_default()
            .replace("PgBouncer ", "");
        let numbers: Vec<u32> = version
            .split('.')
            .filter_map(|part| part.parse().ok())
            .collect();
        numbers.first().copied().zip(numbers.get(1).copied())
    });
    numbers
        .take(1)
        .last()
        .expect("tests need PgBouncer: run .ci/setup test")
}

fn start(settings: &Path) -> Child {
    let directory = settings.parent().expect("a file is in a directory");
    let root = std::fs::metadata(directory).is_ok_and(|found| found.uid() == 0);
    for path in [directory, settings] {
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(path, open).expect("the file is ours");
    }
    for program in PROGRAMS {
        let mut command = Command::new(program);
        if root {
            // It refuses to run as root, too.
            command.args(["-u", "nobody"]);
        }
        command
            .arg(settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        if let Ok(process) = command.spawn() {
            return process;
        }
    }
    panic!("tests need PgBouncer: run .ci/setup test");
}

fn free_port() -> u16 {
    // Below the range for outgoing connections, as for the servers of the tests.
    (0..200)
        .map(|_| rand::random_range(15_000..32_000))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("a free port")
}
