//! Routes and checks over HTTP, without a database: a known route answers 503.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::DropGuard;

use super::*;
use crate::http::{Limits as HttpLimits, bind, serve};

struct Server {
    addr: std::net::SocketAddr,
    metrics: Metrics,
    _stop: DropGuard,
}

impl Server {
    async fn under(prefix: &str) -> Self {
        let stop = CancellationToken::new();
        let metrics = Metrics::new();
        let version = HeaderValue::from_static("2.6.1");
        let api = Api::new(
            prefix.to_owned(),
            version,
            Access::default(),
            metrics.clone(),
            stop.clone(),
        );
        let bound = bind(([127, 0, 0, 1], 0).into()).await.expect("a free port");
        let addr = bound.addr;
        let limits = HttpLimits::api(64, Duration::from_secs(60), Duration::from_secs(600));
        let serving = serve(bound, api.routes(), limits, metrics.clone(), stop.clone());
        tokio::spawn(serving);
        Self {
            addr,
            metrics,
            _stop: stop.drop_guard(),
        }
    }

    /// Sends a request with the path as it is, and returns the whole answer.
    async fn answer(&self, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(self.addr).await.expect("it listens");
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let sent = stream.write_all(request.as_bytes()).await;
        sent.expect("it reads");
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer).await;
        read.expect("it answers in UTF-8");
        answer
    }

    async fn code(&self, method: &str, path: &str) -> String {
        let answer = self.answer(method, path).await;
        assert!(
            answer.contains("metadata_service_version: 2.6.1\r\n"),
            "{answer}"
        );
        assert!(
            answer.contains("content-type: application/json\r\n"),
            "{answer}"
        );
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    }
}

const CASES: [(&str, &str, &str, &str); 20] = [
    ("GET", "/flows/F/runs", "503", "runs"),
    ("GET", "/flows/a%2Fb/runs?status=failed", "503", "runs"),
    ("GET", "/flows/F/runs?status=bogus", "400", "runs"),
    ("GET", "/flows/F/runs?x=%zz", "400", "runs"),
    ("POST", "/flows/F/runs?x=%zz", "405", "runs"),
    ("HEAD", "/flows/F/runs", "405", "runs"),
    ("GET", "/flows/F/runs/1/status", "503", "run_status"),
    ("PURGE", "/flows/F/runs/1/status", "405", "run_status"),
    ("GET", "/openapi.json", "200", "openapi"),
    ("HEAD", "/openapi.json", "405", "openapi"),
    ("GET", "/flows/%zz/runs", "400", "other"),
    ("POST", "/flows/%ff/runs", "400", "other"),
    ("GET", "/flows/F/runs/%00/status", "400", "other"),
    ("GET", "/", "404", "other"),
    ("POST", "/flows/F", "404", "other"),
    ("GET", "/flows//runs", "404", "other"),
    ("GET", "//flows/F/runs", "404", "other"),
    ("GET", "/flows/F/runs/", "404", "other"),
    ("GET", "/flows/F/runs//status", "404", "other"),
    ("OPTIONS", "*", "404", "other"),
];

#[tokio::test]
async fn every_request_is_routed_checked_and_counted() {
    for prefix in ["", "/meta/data"] {
        for (method, path, code, route) in CASES {
            let server = Server::under(prefix).await;
            let path = if path == "*" {
                path.to_owned()
            } else {
                format!("{prefix}{path}")
            };
            assert_eq!(server.code(method, &path).await, code, "{method} {path}");
            let counter = server.metrics.http_requests_total.clone();
            let counted = counter.with_label_values(&[route, code]).get();
            assert_eq!(counted, 1, "{method} {path} counts as {route}");
        }
    }
}

#[tokio::test]
async fn paths_outside_the_prefix_do_not_exist() {
    let server = Server::under("/meta").await;
    for path in [
        "/flows/F/runs",
        "/openapi.json",
        "/meta",
        "/meta/",
        "/metaflows/F/runs",
    ] {
        assert_eq!(server.code("GET", path).await, "404", "{path}");
    }
}

#[tokio::test]
async fn long_paths_and_queries_return_414() {
    let server = Server::under("").await;
    let long = "x".repeat(params::MAX_QUERY + 1);
    for path in [format!("/flows/{long}/runs"), format!("/{long}")] {
        assert_eq!(server.code("GET", &path).await, "414");
        assert_eq!(server.code("POST", &path).await, "414");
    }
    let path = format!("/flows/F/runs?{long}");
    assert_eq!(server.code("GET", &path).await, "414");
    assert_eq!(server.code("POST", &path).await, "405");
}

#[tokio::test]
async fn other_methods_return_405_with_allow() {
    let server = Server::under("").await;
    for method in ["POST", "HEAD", "OPTIONS"] {
        let answer = server.answer(method, "/flows/F/runs").await;
        assert!(answer.contains("\r\nallow: GET\r\n"), "{answer}");
        assert_eq!(
            answer.ends_with("\"only GET is supported\""),
            method != "HEAD"
        );
    }
    let missing = server.answer("GET", "/flows").await;
    assert!(
        missing.ends_with("\"this path does not exist\""),
        "{missing}"
    );
}
