//! The configuration of `deploy/nginx` in a real nginx, with two small servers behind it.
//!
//! Owns the promises about which request is sent where. The servers stand for the metadata service
//! and for the indexer's API; they record the requests that reach them, and their answers name
//! them. Only addresses and the timeout for an unresponsive server are changed in the file.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use reqwest::Client;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_util::task::AbortOnDropHandle;

use testkit::process::watchdog;
use testkit::wait::within;

const CONFIG: &str = include_str!("../../deploy/nginx/status-indexer.conf");
const TIMEOUT: Duration = Duration::from_secs(20);

/// A request that reached a server.
#[derive(Debug, Clone)]
struct Seen {
    method: Method,
    target: String,
    headers: HeaderMap,
    body: usize,
}

/// One of the two servers behind nginx.
struct Backend {
    name: &'static str,
    address: SocketAddr,
    shared: Arc<Shared>,
    server: Option<AbortOnDropHandle<()>>,
}

struct Shared {
    name: &'static str,
    seen: Mutex<Vec<Seen>>,
    /// Its answer, with an additional header.
    answer: Mutex<(StatusCode, Option<(&'static str, &'static str)>)>,
}

impl Backend {
    async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("there are ports");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            name,
            seen: Mutex::default(),
            answer: Mutex::new((StatusCode::OK, None)),
        });
        let router = Router::new()
            .fallback(answer)
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(Arc::clone(&shared));
        let server = tokio::spawn(async {
            axum::serve(listener, router).await.expect("it serves");
        });
        Self {
            name,
            address,
            shared,
            server: Some(AbortOnDropHandle::new(server)),
        }
    }

    fn answers(&self, code: u16, header: Option<(&'static str, &'static str)>) {
        let code = StatusCode::from_u16(code).expect("a code");
        *lock(&self.shared.answer) = (code, header);
    }

    fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).clone()
    }

    /// Stops listening and closes its connections.
    async fn stop(&mut self) {
        self.server = None;
        within(TIMEOUT, "the port is closed", async {
            while TcpStream::connect(self.address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Accepts connections from now on, and never answers.
    async fn hang(&mut self) -> TcpListener {
        self.stop().await;
        TcpListener::bind(self.address)
            .await
            .expect("its port is its own")
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    lock(&shared.seen).push(Seen {
        method,
        target: uri.to_string(),
        headers,
        body: body.len(),
    });
    let (code, extra) = *lock(&shared.answer);
    let own = [("METADATA_SERVICE_VERSION", "2.6.1"), ("X-Limit", "50")];
    let mut response = (code, own, shared.name).into_response();
    if let Some((name, value)) = extra {
        response
            .headers_mut()
            .insert(name, value.parse().expect("a header's value"));
    }
    response
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// nginx and the two servers.
struct Front {
    service: Backend,
    indexer: Backend,
    address: SocketAddr,
    client: Client,
    _nginx: Nginx,
    _directory: tempfile::TempDir,
}

impl Front {
    async fn start() -> Self {
        let service = Backend::start("service").await;
        let indexer = Backend::start("indexer").await;
        let directory = tempfile::tempdir().expect("a directory");
        // Another process may take the port before nginx does: then try another one.
        for _ in 0..5 {
            let address = free_address().await;
            write_config(directory.path(), address, &service, &indexer);
            let mut nginx = Nginx::start(directory.path());
            if listens(&mut nginx, address).await {
                let client = Client::builder().no_proxy().build().expect("a client");
                return Self {
                    service,
                    indexer,
                    address,
                    client,
                    _nginx: nginx,
                    _directory: directory,
                };
            }
        }
        let log = std::fs::read_to_string(directory.path().join("error.log"));
        panic!("nginx does not start: {}", log.unwrap_or_default());
    }

    fn request(&self, method: &str, target: &str) -> reqwest::RequestBuilder {
        let method = method.parse().expect("a method");
        let url = format!("http://{}{target}", self.address);
        self.client.request(method, url)
    }

    /// Code and body.
    async fn ask(&self, method: &str, target: &str) -> (u16, String) {
        let answer = within(TIMEOUT, target, self.request(method, target).send())
            .await
            .expect("nginx answers");
        let code = answer.status().as_u16();
        (code, answer.text().await.expect("a whole body"))
    }
}

async fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("there are ports");
    listener.local_addr().expect("it is bound")
}

fn write_config(directory: &Path, listen: SocketAddr, service: &Backend, indexer: &Backend) {
    let config = [
        ("listen 80;", format!("listen {listen};")),
        ("127.0.0.1:8080", service.address.to_string()),
        ("127.0.0.1:8081", indexer.address.to_string()),
        (
            "proxy_read_timeout 10s;",
            "proxy_read_timeout 500ms;".to_owned(),
        ),
    ]
    .into_iter()
    .fold(CONFIG.to_owned(), |config, (ours, theirs)| {
        assert!(config.contains(ours), "the file says {ours}");
        config.replace(ours, &theirs)
    });
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {kind};\n"))
        .collect();
    let main = format!(
        "daemon off;\nmaster_process off;\npid nginx.pid;\nevents {{}}\n\
         http {{\naccess_log off;\n{temporary}include status-indexer.conf;\n}}\n"
    );
    std::fs::write(directory.join("status-indexer.conf"), config).expect("a file of ours");
    std::fs::write(directory.join("nginx.conf"), main).expect("a file of ours");
}

/// nginx as one process, which ends with the test in any case.
struct Nginx {
    process: Child,
    watchdog: std::process::Child,
}

impl Nginx {
    fn start(directory: &Path) -> Self {
        // Debian installs it outside of the users' PATH.
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
        let process = Command::new("nginx")
            .args(["-e", "error.log", "-c", "nginx.conf", "-p"])
            .arg(directory)
            .env("PATH", path)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("nginx is installed: .ci/setup test does it");
        let pid = process.id().expect("it was not waited for yet");
        Self {
            process,
            watchdog: watchdog(pid),
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its work is done: the process is killed by its own drop.
        let _ = self.watchdog.kill().and_then(|()| self.watchdog.wait());
    }
}

/// Whether it listens in the end, rather than exits.
async fn listens(nginx: &mut Nginx, address: SocketAddr) -> bool {
    within(TIMEOUT, "nginx listens or ends", async {
        loop {
            if TcpStream::connect(address).await.is_ok() {
                return true;
            }
            if nginx.process.try_wait().expect("it is our child").is_some() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

#[tokio::test]
async fn lists_of_runs_are_sent_to_the_indexer_and_everything_else_to_the_service() {
    let front = Front::start().await;
    let requests = [
        ("GET", "/flows/F/runs", "indexer"),
        ("GET", "/flows/F/runs?", "indexer"),
        (
            "GET",
            "/flows/F/runs?status:eq=failed,running&_limit=2&x=/%2F",
            "indexer",
        ),
        ("GET", "/flows/a%2Fb/runs", "indexer"),
        ("GET", "/flows/%C3%BC%20%3F/runs?user=%26", "indexer"),
        ("GET", "/flows/F/runs/7/status", "indexer"),
        ("GET", "/flows/F/runs/argo-x%2F1/status?a=b", "indexer"),
        // The flow `a/runs` itself, and paths that are only similar after decoding.
        ("GET", "/flows/a%2Fruns", "service"),
        ("GET", "/flows/F%2Fruns?status=failed", "service"),
        ("GET", "/flows/F/runs%3Fstatus=failed", "service"),
        ("GET", "/flows/F/%72uns", "service"),
        ("GET", "/ping?path=/flows/F/runs", "service"),
        ("GET", "//flows/F/runs", "service"),
        ("GET", "/flows//runs", "service"),
        ("GET", "/flows/F/runs/", "service"),
        ("GET", "/flows/F/runs/7", "service"),
        ("GET", "/flows/F/runs/7/steps", "service"),
        ("GET", "/flows/F/runs/7/steps/end/tasks/1/status", "service"),
        ("GET", "/flows/F", "service"),
        ("GET", "/flows", "service"),
        ("GET", "/ping", "service"),
        ("HEAD", "/flows/F/runs", "service"),
        ("POST", "/flows/F/runs", "service"),
        ("POST", "/flows/F/run", "service"),
        ("POST", "/flows/F/runs/7/heartbeat", "service"),
        ("PATCH", "/flows/F/runs/7/tag/mutate", "service"),
        ("OPTIONS", "/flows/F/runs", "service"),
    ];
    for (method, target, who) in requests {
        let backend = if who == "indexer" {
            &front.indexer
        } else {
            &front.service
        };
        let before = (front.indexer.seen().len(), front.service.seen().len());
        let (code, body) = front.ask(method, target).await;
        assert_eq!(code, 200, "{method} {target}");
        assert!(method == "HEAD" || body == who, "{method} {target}: {body}");
        let seen = backend.seen().pop().expect("it was asked");
        // Unchanged, byte for byte.
        assert_eq!(
            (seen.method.as_str(), seen.target.as_str()),
            (method, target)
        );
        let after = (front.indexer.seen().len(), front.service.seen().len());
        assert_eq!(after.0 + after.1, before.0 + before.1 + 1, "asked once");
        assert_eq!(backend.name, who);
    }
}

#[tokio::test]
async fn headers_and_large_bodies_pass_in_both_directions() {
    let front = Front::start().await;
    front.indexer.answers(200, Some(("X-Next-Cursor", "e30=")));
    for (method, target, backend) in [
        ("GET", "/flows/F/runs?_limit=1", &front.indexer),
        ("POST", "/flows/F/run", &front.service),
    ] {
        let body = if method == "POST" { 3_000_000 } else { 0 };
        let answer = front
            .request(method, target)
            .header("x-api-key", "secret")
            .header("with_underscore", "kept")
            .header("host", "metadata.example:8443")
            .body(vec![b'x'; body])
            .send()
            .await
            .expect("nginx answers");
        assert_eq!(answer.headers()["metadata_service_version"], "2.6.1");
        assert_eq!(answer.headers()["x-limit"], "50");
        let cursor = answer.headers().get("x-next-cursor");
        assert_eq!(cursor.is_some(), method == "GET");
        let seen = backend.seen().pop().expect("it was asked");
        assert_eq!(seen.headers["x-api-key"], "secret");
        assert_eq!(seen.headers["with_underscore"], "kept");
        assert_eq!(seen.headers["host"], "metadata.example:8443");
        assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1");
        assert_eq!(seen.body, body);
    }
}

#[tokio::test]
async fn the_service_answers_when_the_indexer_cannot() {
    let mut front = Front::start().await;
    let list = "/flows/a%2Fb/runs?status=failed";
    // It answers so itself: the column is not valid yet, or its database is away.
    front.indexer.answers(503, None);
    assert_eq!(front.ask("GET", list).await, (200, "service".to_owned()));
    assert_eq!(front.service.seen()[0].target, list);
    // It does not listen.
    front.indexer.stop().await;
    for _ in 0..5 {
        assert_eq!(front.ask("GET", list).await, (200, "service".to_owned()));
    }
    assert_eq!(front.service.seen().len(), 6);
    // Requests that only the indexer understands are not sent to the service.
    let (code, _) = front.ask("GET", "/flows/F/runs/7/status").await;
    assert_eq!((code, front.service.seen().len()), (502, 6));
}

#[tokio::test]
async fn a_503_of_an_overloaded_indexer_is_not_passed_on_to_the_service() {
    let front = Front::start().await;
    front.indexer.answers(503, Some(("Retry-After", "3")));
    let answer = front
        .request("GET", "/flows/F/runs?status=failed")
        .send()
        .await
        .expect("nginx answers");
    assert_eq!(answer.status().as_u16(), 503);
    assert_eq!(answer.headers()["retry-after"], "3");
    assert!(front.service.seen().is_empty());
}

#[tokio::test]
async fn refusals_reach_the_client_and_no_request_is_sent_twice() {
    let front = Front::start().await;
    for code in [400, 405, 414, 500] {
        front.indexer.answers(code, None);
        let answer = front.ask("GET", "/flows/F/runs?status=bogus").await;
        assert_eq!(answer, (code, "indexer".to_owned()));
    }
    assert!(front.service.seen().is_empty());
    for code in [404, 500, 502, 503] {
        front.service.answers(code, None);
        let answer = front.ask("POST", "/flows/F/run").await;
        assert_eq!(answer, (code, "service".to_owned()));
    }
    assert_eq!(front.service.seen().len(), 4);
}

#[tokio::test]
async fn an_unresponsive_indexer_is_tried_twice_and_then_avoided_for_a_while() {
    let mut front = Front::start().await;
    let _silent = front.indexer.hang().await;
    let start = Instant::now();
    for _ in 0..50 {
        let answer = front.ask("GET", "/flows/F/runs?status=failed").await;
        assert_eq!(answer, (200, "service".to_owned()));
    }
    let waited = start.elapsed();
    let limit = Duration::from_millis(500);
    assert!(waited >= limit && waited < 6 * limit, "{waited:?}");
}
