//! Hostile input: it is refused, and the API continues to serve.

use std::time::Duration;

use super::server::ApiServer;
use testkit::wait::within;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn hostile_requests_are_refused_without_harm() {
    let server = ApiServer::new().await;
    let long = "x".repeat(20_000);
    let many = "a=1&".repeat(3000);
    let values = format!("user_name={}", "a,".repeat(1001));
    let deep = format!("tags={}", "%5B".repeat(5000));
    let cases = [
        ("/flows/F/runs?user_name=%ff".to_owned(), 400),
        ("/flows/F/runs?%ff=1".to_owned(), 400),
        ("/flows/F/runs?user_name=%".to_owned(), 400),
        ("/flows/F/runs?user_name=%0".to_owned(), 400),
        ("/flows/F/runs?user_name=%zz".to_owned(), 400),
        ("/flows/F/runs?user_name=a%00b".to_owned(), 400),
        ("/flows/F/runs?bogus=%00".to_owned(), 400),
        ("/flows/%00/runs".to_owned(), 400),
        ("/flows/%c3%28/runs".to_owned(), 400),
        ("/flows/F/runs/%00/status".to_owned(), 400),
        (format!("/flows/F/runs?{many}"), 400),
        (format!("/flows/F/runs?{values}"), 400),
        (format!("/flows/F/runs?{deep}"), 400),
        (format!("/flows/F/runs?user_name={long}"), 414),
        (format!("/flows/{long}/runs"), 414),
        (format!("/flows/F/runs?_limit={}", "9".repeat(400)), 400),
        (format!("/flows/F/runs?ts_epoch={}", "9".repeat(400)), 400),
        ("/flows/F/runs?_cursor=%22%27%3B--".to_owned(), 400),
        (
            "/flows/F/runs/99999999999999999999999/status".to_owned(),
            404,
        ),
        ("/flows/F/runs/1%20or%201=1/status".to_owned(), 404),
        ("/../../etc/passwd".to_owned(), 404),
    ];
    for (path, code) in &cases {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let shown = &path[..path.len().min(60)];
        assert_eq!(server.raw(request.as_bytes()).await, Some(*code), "{shown}");
    }
    // Not HTTP, or too much of it: the listener refuses by itself, or closes the connection.
    let header = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(600_000));
    let line = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(70_000));
    let bytes: [&[u8]; 5] = [
        b"GET /flows/\xff\xfe/runs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"\x16\x03\x01\x00\xf1\x01\x00",
        b"GET /flows/F/runs?a\x00b HTTP/1.1\r\nHost: x\r\n\r\n",
        header.as_bytes(),
        line.as_bytes(),
    ];
    for bytes in bytes {
        let code = server.raw(bytes).await;
        assert!(
            code.is_none_or(|code| (400..500).contains(&code)),
            "{code:?}"
        );
    }
    assert_eq!(server.get("/flows/F/runs").await.text, "[]");
}

#[tokio::test]
async fn values_never_become_sql() {
    let server = ApiServer::new().await;
    server.sql(
        "insert into flows_v3 (flow_id, ts_epoch) values ('F', 1), ($$x' or '1'='1$$, 1);
         insert into runs_v3 (flow_id, user_name, ts_epoch) values ('F', $$'; drop table runs_v3; --$$, 1), ($$x' or '1'='1$$, 'u', 2)",
    )
    .await;
    let named = [("user_name", "'; drop table runs_v3; --")];
    assert_eq!(server.runs(&named).await.numbers(), ["1"]);
    let flow = server.get("/flows/x'%20or%20'1'='1/runs").await;
    assert_eq!(flow.numbers(), ["2"]);
    for value in [
        "$1",
        "{a}",
        "\\",
        "a\\",
        "{\"",
        "NULL",
        "%",
        "\u{202e}\u{1F600}",
    ] {
        for key in [
            "user_name",
            "user_name:co",
            "user:sw",
            "run_id:lt",
            "_tags",
            "_tags:likeall",
        ] {
            assert_eq!(
                server.runs(&[(key, value)]).await.code,
                200,
                "{key}={value}"
            );
        }
    }
}

#[tokio::test]
async fn bodies_and_headers_beyond_the_limits_are_refused_and_the_connection_is_closed() {
    let server = ApiServer::new().await;
    let large = "x".repeat(1_000_000);
    let many: String = (0..101).map(|n| format!("X-{n}: x\r\n")).collect();
    let header = format!("X: {}\r\n", "x".repeat(200_000));
    let path = "/flows/F/runs";
    for (what, request, codes) in [
        // No request has a use for a body: it is not read, whatever its length.
        (
            "a body",
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n{large}"),
            &[405][..],
        ),
        (
            "a body of a request that is answered",
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n{large}"),
            &[200],
        ),
        (
            "a body in chunks without end",
            format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nF4240\r\n{large}\r\n"
            ),
            &[200],
        ),
        (
            "two lengths",
            format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"
            ),
            &[400],
        ),
        (
            "too many headers",
            format!("GET {path} HTTP/1.1\r\nHost: x\r\n{many}\r\n"),
            &[431],
        ),
        (
            "too long a header",
            format!("GET {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n"),
            &[431],
        ),
    ] {
        // `raw` reads until the server closes the connection.
        let code = within(SOON, what, server.raw(request.as_bytes())).await;
        // A reset may overtake the answer where the client still sends.
        assert!(
            code.is_none_or(|code| codes.contains(&code)),
            "{what}: {code:?}"
        );
    }
    assert_eq!(server.get(path).await.text, "[]");
}
