//! Servers with realistic configurations: certificates, rules of `pg_hba.conf`, and a pooler
//! without a server.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use testkit::postgres::{Options, Postgres};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

pub(crate) async fn start() -> Postgres {
    Postgres::start(Options::default())
        .await
        .expect("a server of our own")
}

/// Replaces the server's authentication rules.
pub(crate) async fn set_rules(server: &Postgres, rules: &str) {
    install(server, "pg_hba.conf", rules.as_bytes());
    let client = testkit::database::connect(&server.config("postgres")).await;
    let reload = "select pg_reload_conf()";
    client
        .execute(reload, &[])
        .await
        .expect("tests are superuser");
}

/// Writes a file of the server's, readable by it alone.
pub(super) fn install(server: &Postgres, name: &str, content: &[u8]) {
    let data = server.directory().join("data");
    let owner = fs::metadata(&data).expect("the server has data");
    let target = data.join(name);
    fs::write(&target, content).expect("the server's directory is ours to fill");
    fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).expect("it is ours");
    chown(&target, Some(owner.uid()), Some(owner.gid())).expect("it is ours");
}

/// A directory of keys and certificates, made by OpenSSL.
pub(crate) struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) async fn openssl(&self, args: &str) {
        let output = tokio::process::Command::new("openssl")
            .args(args.split(' '))
            .current_dir(self.directory.path())
            .output()
            .await
            .expect("openssl is installed");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args}: {text}");
    }

    /// Installs a certificate, whose key has the same name, and restarts the server with it.
    pub(crate) async fn install(&self, server: &Postgres, name: &str) {
        for kind in ["crt", "key"] {
            let content = read(&self.path(&format!("{name}.{kind}")));
            install(server, &format!("server.{kind}"), &content);
        }
        server
            .configure(&[("ssl", "on")])
            .expect("its file is ours");
        server.restart().await.expect("the server starts with TLS");
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).expect("openssl wrote it")
}

/// Answers every connection with one error, as a pooler without an available server does.
pub(super) struct Refusing {
    pub(super) address: SocketAddr,
    _task: AbortOnDropHandle<()>,
}

impl Refusing {
    pub(super) async fn with(code: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                // A client that goes away early does not matter.
                let _ = refuse(&mut client, code).await;
            }
        });
        Self {
            address,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

async fn refuse(client: &mut tokio::net::TcpStream, code: &str) -> std::io::Result<()> {
    const SSL_REQUEST: u32 = 80_877_103;
    loop {
        let length = client.read_u32().await?;
        let kind = client.read_u32().await?;
        let rest = usize::try_from(length.saturating_sub(8)).unwrap_or_default();
        client.read_exact(&mut vec![0; rest]).await?;
        if kind != SSL_REQUEST {
            break;
        }
        client.write_all(b"N").await?;
    }
    let fields = format!("SFATAL\0VFATAL\0C{code}\0Mno server to give\0\0");
    let length = u32::try_from(fields.len() + 4).expect("a short message");
    client.write_u8(b'E').await?;
    client.write_u32(length).await?;
    client.write_all(fields.as_bytes()).await?;
    client.shutdown().await
}
