//! Both listeners with TLS and tokens: real clients, and files that are renewed under the daemon.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::connect::server::Certificates;
use testkit::daemon::{Daemon, Launch};
use testkit::database::Database;
use testkit::wait::{eventually, eventually_eq, within};

const SOON: Duration = Duration::from_secs(60);

const READER: &str = "reader-token-0123456789";
const SCRAPER: &str = "scraper-token-0123456789";
const NEXT: &str = "next-token-0123456789";

/// Certificates of a server named `localhost`, each by an authority of its own.
pub(crate) async fn certificates(names: &[&str]) -> Certificates {
    let all = Certificates::new();
    let extensions = "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n";
    fs::write(all.path("extensions"), extensions).expect("our own directory");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for name in names {
        for args in [
            format!(
                "req -x509 {key} -days 30 -keyout {name}-ca.key -out {name}-ca.crt -subj /CN=a-{name}"
            ),
            format!("req {key} -keyout {name}.key -out {name}.csr -subj /CN=localhost"),
            format!(
                "x509 -req -in {name}.csr -CA {name}-ca.crt -CAkey {name}-ca.key -CAcreateserial \
                 -days 30 -extfile extensions -out {name}.crt"
            ),
        ] {
            all.openssl(&args).await;
        }
    }
    all
}

/// A directory of files that Kubernetes has mounted from a Secret: a new version replaces all files at
/// once, by one link.
struct Secret {
    directory: tempfile::TempDir,
}

impl Secret {
    fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (name, _) in files {
            let target = format!("..data/{name}");
            symlink(target, directory.path().join(name)).expect("a new link");
        }
        let secret = Self { directory };
        secret.replace("1", files);
        secret
    }

    fn replace(&self, version: &str, files: &[(&str, Vec<u8>)]) {
        let root = self.directory.path();
        fs::create_dir(root.join(version)).expect("a new version");
        for (name, content) in files {
            fs::write(root.join(version).join(name), content).expect("a new file");
        }
        symlink(version, root.join("..new")).expect("a new link");
        fs::rename(root.join("..new"), root.join("..data")).expect("the same directory");
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }
}

/// The content of the Secret: a certificate, and the tokens of each listener.
fn content(
    certificates: &Certificates,
    name: &str,
    readers: &str,
    scrapers: &str,
) -> [(&'static str, Vec<u8>); 4] {
    let read = |name: String| fs::read(certificates.path(&name)).expect("openssl wrote it");
    [
        ("tls.crt", read(format!("{name}.crt"))),
        ("tls.key", read(format!("{name}.key"))),
        ("readers", readers.into()),
        ("scrapers", scrapers.into()),
    ]
}

fn launch(database: &Database, secret: &Secret) -> Launch {
    let mut launch = Launch::on(database).env("STATUS_INDEXER_LOG", "trace");
    for (listener, tokens) in [("HTTP", "readers"), ("METRICS", "scrapers")] {
        for (name, file) in [
            ("TLS_CERT", "tls.crt"),
            ("TLS_KEY", "tls.key"),
            ("TOKEN_FILE", tokens),
        ] {
            let variable = format!("STATUS_INDEXER_{listener}_{name}");
            launch = launch.env(&variable, &secret.path(file));
        }
    }
    launch
}

/// The answer to curl.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Its exit code: 0 for any answer, 60 for a certificate that it does not trust.
    pub(crate) exit: i32,
    /// The code of HTTP; 0 without an answer.
    pub(crate) code: u16,
    pub(crate) text: String,
}

/// A client of a listener, which trusts one authority.
pub(crate) struct Curl {
    pub(crate) addr: SocketAddr,
    pub(crate) authority: Option<PathBuf>,
}

impl Curl {
    pub(crate) async fn get(&self, path: &str, token: Option<&str>) -> Reply {
        let port = self.addr.port();
        let mut command = Command::new("curl");
        command
            .args([
                "-sS",
                "-i",
                "--path-as-is",
                "--max-time",
                "60",
                "--noproxy",
                "*",
                "--resolve",
            ])
            .arg(format!("localhost:{port}:127.0.0.1"));
        if let Some(authority) = &self.authority {
            command.arg("--cacert").arg(authority);
        }
        if let Some(token) = token {
            command.args(["-H", &format!("Authorization: Bearer {token}")]);
        }
        let scheme = if path.starts_with("http") {
            ""
        } else {
            "https://localhost"
        };
        let url = match scheme {
            "" => path.to_owned(),
            _ => format!("{scheme}:{port}{path}"),
        };
        let output = command.arg(url).output().await.expect("curl is installed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Reply {
            exit: output.status.code().unwrap_or(-1),
            code: text
                .split(' ')
                .nth(1)
                .and_then(|code| code.parse().ok())
                .unwrap_or(0),
            text,
        }
    }

    pub(crate) async fn code(&self, path: &str, token: Option<&str>) -> u16 {
        self.get(path, token).await.code
    }
}

async fn sample(metrics: &Curl, token: &str, name: &str) -> Option<f64> {
    let text = metrics.get("/metrics", Some(token)).await.text;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_tokens_are_required_and_renewed_without_a_restart() {
    let all = certificates(&["one", "two"]).await;
    let secret = Secret::new(&content(&all, "one", READER, SCRAPER));
    let database = Database::fresh().await;
    let daemon = launch(&database, &secret).spawn();
    let (api, metrics) = (daemon.api().await, daemon.address().await);
    let trusting = |addr, name: &str| Curl {
        addr,
        authority: Some(all.path(&format!("{name}-ca.crt"))),
    };
    let probes = trusting(metrics, "one");
    eventually_eq(SOON, "the daemon is ready", 200, async || {
        probes.code("/readyz", None).await
    })
    .await;

    for (addr, token, other, path) in [
        (api, READER, SCRAPER, "/flows/F/runs?status=failed"),
        (metrics, SCRAPER, READER, "/metrics"),
    ] {
        let client = trusting(addr, "one");
        let missing = client.get(path, None).await;
        assert_eq!((missing.exit, missing.code), (0, 401), "{missing:?}");
        let head = missing.text.to_lowercase();
        assert!(head.contains("\r\nwww-authenticate: bearer "), "{head}");
        for wrong in [other, "", &token[1..], &token.to_uppercase()] {
            assert_eq!(client.code(path, Some(wrong)).await, 401, "{wrong}");
        }
        assert_eq!(client.code(path, Some(token)).await, 200);
        assert_eq!(trusting(addr, "two").get(path, Some(token)).await.exit, 60);
        let system = Curl {
            addr,
            authority: None,
        };
        assert_eq!(system.get(path, Some(token)).await.exit, 60);
        let plain = format!("http://127.0.0.1:{}{path}", addr.port());
        let plain = system.get(&plain, Some(token)).await;
        assert_eq!((plain.exit, plain.code), (0, 400), "{plain:?}");
        assert!(plain.text.contains("requires TLS"), "{plain:?}");
    }
    for path in ["/", "/openapi.json", "/flows/F/runs", "/nosuch", "//"] {
        assert_eq!(trusting(api, "one").code(path, None).await, 401, "{path}");
    }
    assert_eq!(probes.code("/healthz", None).await, 200);
    for path in [
        "/",
        "/nosuch",
        "/healthz/",
        "/healthz/../metrics",
        "//readyz",
    ] {
        assert_eq!(probes.code(path, None).await, 401, "{path}");
    }

    // Both tokens are valid until the clients have the new one.
    let both = format!("{READER}\n{NEXT}\n");
    secret.replace("2", &content(&all, "two", &both, SCRAPER));
    let client = trusting(api, "two");
    eventually_eq(SOON, "the new token is valid", 200, async || {
        client.code("/flows/F/runs", Some(NEXT)).await
    })
    .await;
    assert_eq!(client.code("/flows/F/runs", Some(READER)).await, 200);
    assert_eq!(probes.get("/healthz", None).await.exit, 60);
    let metrics = trusting(metrics, "two");
    assert_eq!(metrics.code("/healthz", None).await, 200);

    // A file that cannot be used changes nothing, and is reported.
    let stale = "status_indexer_credentials_stale{credential=\"certificate\",listener=\"api\"}";
    assert_eq!(sample(&metrics, SCRAPER, stale).await, Some(0.0));
    let mut mismatch = content(&all, "two", NEXT, SCRAPER);
    mismatch[1].1 = fs::read(all.path("one.key")).expect("openssl wrote it");
    secret.replace("3", &mismatch);
    eventually_eq(SOON, "it is reported", Some(1.0), async || {
        sample(&metrics, SCRAPER, stale).await
    })
    .await;
    eventually_eq(SOON, "the old token is not valid", 401, async || {
        client.code("/flows/F/runs", Some(READER)).await
    })
    .await;
    assert_eq!(client.code("/flows/F/runs", Some(NEXT)).await, 200);
    secret.replace("4", &content(&all, "one", NEXT, SCRAPER));
    eventually_eq(SOON, "the files are valid again", Some(0.0), async || {
        sample(&probes, SCRAPER, stale).await
    })
    .await;
    let reported = |text: &str| {
        let log = daemon.log();
        log.iter()
            .filter(|line| line.to_string().contains(text))
            .count()
    };
    // Once for each listener.
    assert_eq!(reported("its previous content remains in use"), 2);
    let expiry = "status_indexer_tls_certificate_expiry_timestamp_seconds{listener=\"api\"}";
    assert!(sample(&probes, SCRAPER, expiry).await > Some(1.7e9));
    let refused = "status_indexer_http_refused_total{listener=\"api\",reason=\"token\"}";
    assert!(sample(&probes, SCRAPER, refused).await >= Some(10.0));
    let refused = "status_indexer_http_refused_total{listener=\"metrics\",reason=\"tls\"}";
    assert!(sample(&probes, SCRAPER, refused).await >= Some(1.0));
    for token in [READER, SCRAPER, NEXT] {
        assert_eq!(reported(token), 0, "the log contains a token");
        let page = probes.get("/metrics", Some(SCRAPER)).await.text;
        assert!(!page.contains(token));
    }
    assert!(daemon.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_connects_with_tls_1_2_and_1_3_only() {
    let all = certificates(&["one"]).await;
    let secret = Secret::new(&content(&all, "one", READER, SCRAPER));
    let database = Database::fresh().await;
    let daemon = launch(&database, &secret).spawn();
    let authority = all.path("one-ca.crt");
    for addr in [daemon.api().await, daemon.address().await] {
        for (version, host, accepted) in [
            ("-tls1_3", "localhost", true),
            ("-tls1_2", "localhost", true),
            ("-tls1_2", "elsewhere", false),
            ("-tls1_1", "localhost", false),
        ] {
            let output = Command::new("openssl")
                .args([
                    "s_client",
                    "-brief",
                    "-verify_return_error",
                    "-verify_hostname",
                    host,
                ])
                .args([
                    "-alpn",
                    "h2,http/1.1",
                    "-connect",
                    &addr.to_string(),
                    version,
                    "-CAfile",
                ])
                .arg(&authority)
                .stdin(std::process::Stdio::null())
                .output()
                .await
                .expect("openssl is installed");
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                output.status.success(),
                accepted,
                "{version} {host}: {text}"
            );
        }
    }
    assert!(daemon.terminate().await.success());
}

/// A client over TLS that the test drives byte by byte.
async fn tls_client(addr: SocketAddr, certificates: &Certificates) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    let authority =
        rustls::pki_types::CertificateDer::from_pem_file(certificates.path("one-ca.crt"));
    roots.add(authority.expect("PEM")).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has both versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(addr).await.expect("it listens");
    let name = ServerName::try_from("localhost").expect("a name");
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    connecting.await.expect("a handshake")
}

async fn closed(daemon: &Daemon, reason: &str) -> Option<f64> {
    let sample = format!(
        "status_indexer_http_connections_closed_total{{listener=\"api\",reason=\"{reason}\"}}"
    );
    daemon.metric(&sample).await
}

fn with_certificate(database: &Database, all: &Certificates) -> Launch {
    Launch::on(database)
        .env(
            "STATUS_INDEXER_HTTP_TLS_CERT",
            &all.path("one.crt").display().to_string(),
        )
        .env(
            "STATUS_INDEXER_HTTP_TLS_KEY",
            &all.path("one.key").display().to_string(),
        )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_finish_is_closed() {
    let all = certificates(&["one"]).await;
    let database = Database::fresh().await;
    let daemon = with_certificate(&database, &all).start().await;
    let addr = daemon.api().await;
    let mut silent = TcpStream::connect(addr).await.expect("it listens");
    let mut partial = TcpStream::connect(addr).await.expect("it listens");
    // The head of a record of 512 bytes, and the beginning of a ClientHello.
    let hello = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    partial.write_all(&hello).await.expect("it reads");
    // Plain HTTP that never ends: it is answered, and closed as well.
    let mut plain = TcpStream::connect(addr).await.expect("it listens");
    plain
        .write_all(b"GET / HTTP/1.1\r\n")
        .await
        .expect("it reads");
    let mut idle = tls_client(addr, &all).await;
    for (what, stream) in [("silent", &mut silent), ("partial", &mut partial)] {
        let read = within(SOON, what, stream.read(&mut [0; 64])).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{what}: {read:?}");
    }
    let mut answer = String::new();
    let read = within(SOON, "plain", plain.read_to_string(&mut answer)).await;
    read.expect("the answer is complete");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let read = within(SOON, "idle", idle.read(&mut [0; 64])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "idle: {read:?}");
    eventually(SOON, "all are counted", async || {
        closed(&daemon, "handshake_timeout").await == Some(3.0)
            && closed(&daemon, "head_timeout").await == Some(1.0)
    })
    .await;
    assert!(daemon.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_is_complete_over_tls_and_a_client_that_does_not_read_is_closed() {
    const RUNS: &str = "\
insert into flows_v3 (flow_id, ts_epoch) values ('F', 1);
insert into runs_v3 (flow_id, user_name, ts_epoch, tags, system_tags)
select 'F', 'u', i,
       (select jsonb_agg(repeat(md5(i || '-' || j), 16)) from generate_series(1, 50) j), '[]'
  from generate_series(1, 1000) i";
    let all = certificates(&["one"]).await;
    let database = Database::fresh().await;
    let daemon = with_certificate(&database, &all)
        .arg("--reader-write-timeout")
        .arg("2")
        .start()
        .await;
    let client = database.client().await;
    client.batch_execute(RUNS).await.expect("valid SQL");
    let addr = daemon.api().await;
    let mut stalled = tls_client(addr, &all).await;
    let request = b"GET /flows/F/runs HTTP/1.1\r\nHost: x\r\n\r\n";
    stalled.write_all(request).await.expect("the API reads");
    let mut start = [0; 12];
    let begun = within(SOON, "a list has begun", stalled.read_exact(&mut start)).await;
    begun.expect("it begins");

    let curl = Curl {
        addr,
        authority: Some(all.path("one-ca.crt")),
    };
    let reply = curl.get("/flows/F/runs", None).await;
    assert_eq!((reply.exit, reply.code), (0, 200));
    let (_, body) = reply
        .text
        .split_once("\r\n\r\n")
        .expect("a head and a body");
    let runs: Vec<serde_json::Value> = serde_json::from_str(body).expect("the list is complete");
    assert_eq!(runs.len(), 1000);
    eventually_eq(
        SOON,
        "the stalled client is closed",
        Some(1.0),
        async || closed(&daemon, "write_timeout").await,
    )
    .await;
    assert!(daemon.terminate().await.success());
}

#[tokio::test]
async fn files_that_cannot_be_used_exit_64_with_the_reason() {
    let all = certificates(&["one", "two"]).await;
    all.openssl("ec -aes256 -passout pass:x -in one.key -out locked.key")
        .await;
    let write =
        |name: &str, text: &str| fs::write(all.path(name), text).expect("our own directory");
    write("empty", "");
    write("short", "a-short-secret\n");
    write("words", "two words that are a secret\n");
    let database = Database::fresh().await;
    let path = |name: &str| all.path(name).display().to_string();
    for (listener, variables, problem) in [
        ("http", &[("TLS_CERT", "one.crt")][..], "--http-tls-key"),
        ("metrics", &[("TLS_KEY", "one.key")], "--metrics-tls-cert"),
        (
            "http",
            &[("TLS_CERT", "nosuch"), ("TLS_KEY", "one.key")],
            "cannot read",
        ),
        (
            "http",
            &[("TLS_CERT", "one.crt"), ("TLS_KEY", "nosuch")],
            "cannot read",
        ),
        (
            "metrics",
            &[("TLS_CERT", "one.key"), ("TLS_KEY", "one.key")],
            "no certificate",
        ),
        (
            "http",
            &[("TLS_CERT", "one.crt"), ("TLS_KEY", "one.crt")],
            "no private key",
        ),
        (
            "http",
            &[("TLS_CERT", "one.crt"), ("TLS_KEY", "locked.key")],
            "locked.key",
        ),
        (
            "metrics",
            &[("TLS_CERT", "one.crt"), ("TLS_KEY", "two.key")],
            "cannot be used together",
        ),
        ("http", &[("TOKEN_FILE", "nosuch")], "cannot read"),
        ("http", &[("TOKEN_FILE", "empty")], "contains no token"),
        (
            "metrics",
            &[("TOKEN_FILE", "short")],
            "less than 16 characters",
        ),
        ("http", &[("TOKEN_FILE", "words")], "line 1"),
    ] {
        let mut launch = Launch::on(&database);
        for (name, file) in variables {
            let variable = format!("STATUS_INDEXER_{}_{name}", listener.to_uppercase());
            launch = launch.env(&variable, &path(file));
        }
        let output = launch.output().await;
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{variables:?}: {text}");
        assert!(text.contains(problem), "{variables:?}: {text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

#[tokio::test]
async fn a_token_without_tls_on_a_network_address_is_reported() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let tokens = directory.path().join("tokens");
    fs::write(&tokens, READER).expect("our own directory");
    let tokens = tokens.display().to_string();
    let database = Database::fresh().await;
    let daemon = Launch::on(&database)
        .env("STATUS_INDEXER_HTTP_LISTEN", "0.0.0.0:0")
        .env("STATUS_INDEXER_HTTP_TOKEN_FILE", &tokens)
        .env("STATUS_INDEXER_METRICS_TOKEN_FILE", &tokens)
        .start()
        .await;
    let warnings: Vec<_> = daemon
        .log()
        .into_iter()
        .filter(|line| {
            line.to_string()
                .contains("tokens are sent without encryption")
        })
        .collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0]["listener"], "api");
    assert!(warnings[0].to_string().contains("--http-tls-cert"));
    assert!(daemon.terminate().await.success());
}
