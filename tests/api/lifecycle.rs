//! Connections, streams and outages: which resources a request holds, when it releases them, and
//! what is answered while the database is unavailable.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::Value;
use status_indexer::api::Limits;
use status_indexer::pg::SessionMode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::server::{ApiServer, LIMITS, plain, read, unlock};
use testkit::daemon::Launch;
use testkit::database::{Database, shared};
use testkit::proxy::Proxy;
use testkit::wait::{eventually, eventually_eq};

const SOON: Duration = Duration::from_secs(10);

const ROWS: &str = "\
insert into flows_v3 (flow_id, ts_epoch) values ('F', 1);
insert into runs_v3 (flow_id, user_name, ts_epoch, tags, system_tags, run_status)
select 'F', repeat('x', 200), i / 2, jsonb_build_array(repeat(md5(i::text), 60)), '[]', 'failed'
  from generate_series(1, 5000) i;";

const ONE_AT_A_TIME: Limits = Limits {
    pool_max: 1,
    queue: 1,
    ..LIMITS
};

#[tokio::test]
async fn the_complete_list_is_streamed_without_holding_a_connection() {
    let server = ApiServer::with(ONE_AT_A_TIME, SessionMode::Session).await;
    server.sql(ROWS).await;
    let mut slow = server.dial().await;
    slow.write_all(b"GET /flows/F/runs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .expect("the API reads");
    let mut start = [0; 1000];
    slow.read_exact(&mut start).await.expect("it has begun");
    // Ten megabytes do not fit into the buffers: the stream waits for its reader; others are
    // served.
    for _ in 0..20 {
        assert_eq!(
            server
                .runs(&[("status", "failed"), ("_limit", "1")])
                .await
                .numbers(),
            ["5000"]
        );
    }
    let busy = "\
select count(*) from pg_stat_activity
 where datname = current_database() and pid <> pg_backend_pid() and state <> 'idle'";
    eventually_eq(SOON, "no session is busy", 0_i64, async || {
        let row = server.client.query_one(busy, &[]).await;
        row.expect("the catalog can be read").get(0)
    })
    .await;
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).await.expect("it ends");
    assert!(rest.ends_with(b"]\r\n0\r\n\r\n"), "the list is whole");
    let all = server.get("/flows/F/runs").await;
    let expected: Vec<String> = (1..=5000)
        .rev()
        .map(|number: i32| number.to_string())
        .collect();
    assert!(all.numbers() == expected);
    let some = server.get("/flows/F/runs?_offset=4000").await;
    assert!(some.numbers() == expected[4000..]);
}

#[tokio::test]
async fn a_list_that_cannot_be_completed_breaks_the_connection() {
    let server = ApiServer::new().await;
    server.sql(ROWS).await;
    let answer = plain().get(server.url("/flows/F/runs")).send().await;
    let mut body = answer.expect("it begins").bytes_stream();
    body.next().await.expect("some of it").expect("comes");
    server.sql("alter table runs_v3 rename to elsewhere").await;
    let mut broken = false;
    while let Some(part) = body.next().await {
        broken = part.is_err();
    }
    assert!(broken, "the reader notices that the list is incomplete");
    server.sql("alter table elsewhere rename to runs_v3").await;
    assert_eq!(server.runs(&[("_limit", "1")]).await.numbers(), ["5000"]);
}

#[tokio::test]
async fn the_query_of_a_disconnected_client_is_cancelled() {
    for mode in [SessionMode::Session, SessionMode::Transaction] {
        let server = ApiServer::with(ONE_AT_A_TIME, mode).await;
        server.sql(ROWS).await;
        let blocker = server.lock().await;
        let paths = [
            "/flows/F/runs",
            "/flows/F/runs?status=failed",
            "/flows/F/runs?user=x",
            "/flows/F/runs/1/status",
        ];
        for path in paths {
            let mut client = server.dial().await;
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            client
                .write_all(request.as_bytes())
                .await
                .expect("the API reads");
            eventually_eq(SOON, "it waits for the lock", 1, async || {
                server.blocked().await
            })
            .await;
            drop(client);
            eventually_eq(SOON, "it is cancelled", 0, async || server.blocked().await).await;
        }
        // Before its own time limit, which would cancel it as well.
        let cancelled = server
            .logged("canceling statement due to user request")
            .await;
        assert_eq!(cancelled, paths.len());
        unlock(&blocker).await;
        for path in paths {
            assert_eq!(server.get(path).await.code, 200, "{path}");
        }
    }
}

#[tokio::test]
async fn too_many_concurrent_requests_return_503_with_retry_after() {
    let server = ApiServer::with(ONE_AT_A_TIME, SessionMode::Session).await;
    server.sql(ROWS).await;
    let blocker = server.lock().await;
    let path = "/flows/F/runs?_limit=1";
    let first = server.get(path);
    let others = async {
        eventually_eq(SOON, "one waits for the lock", 1, async || {
            server.blocked().await
        })
        .await;
        // One of the two waits for the first; the queue has no place for the other.
        let answered = |answer: super::server::Answer| {
            let blocker = &blocker;
            async move {
                if answer.code == 503 {
                    assert_eq!(answer.header("retry-after"), Some("1"));
                    unlock(blocker).await;
                }
                answer.code
            }
        };
        let (second, third) =
            tokio::join!(async { answered(server.get(path).await).await }, async {
                answered(server.get(path).await).await
            });
        let mut codes = [second, third];
        codes.sort_unstable();
        codes
    };
    let (first, others) = tokio::join!(first, others);
    assert_eq!((first.code, others), (200, [200, 503]));
    let busy = server
        .metrics
        .http_requests_total
        .with_label_values(&["runs", "503"]);
    assert_eq!(busy.get(), 1);
    let rejected = &server.metrics.http_requests_rejected_total;
    assert_eq!(rejected.with_label_values(&["reads"]).get(), 1);
    assert_eq!(rejected.with_label_values(&["memory"]).get(), 0);
}

#[tokio::test]
async fn a_query_beyond_the_time_limit_returns_503() {
    let limits = Limits {
        statement: Duration::from_millis(50),
        ..LIMITS
    };
    for mode in [SessionMode::Session, SessionMode::Transaction] {
        let server = ApiServer::with(limits, mode).await;
        let blocker = server.lock().await;
        for query in ["status=failed", "user_name=x"] {
            let answer = server.get(&format!("/flows/F/runs?{query}")).await;
            assert_eq!(answer.code, 503, "{}", answer.text);
            assert_eq!(
                answer.json(),
                "the database took too long: narrow the filter"
            );
        }
        unlock(&blocker).await;
        assert_eq!(server.get("/flows/F/runs?status=failed").await.text, "[]");
    }
}

#[tokio::test]
async fn an_outage_returns_503_without_the_text_of_the_database_until_it_ends() {
    let database = Database::fresh().await;
    let proxy = Proxy::to(shared().await.address()).await;
    let url = database.url_through(proxy.address());
    let server = ApiServer::on(
        database,
        url.parse().expect("a valid URI"),
        LIMITS,
        SessionMode::Session,
    )
    .await;
    let paths = [
        "/flows/F/runs",
        "/flows/F/runs?status=failed",
        "/flows/F/runs/1/status",
    ];
    assert_eq!(server.get(paths[1]).await.code, 200);
    server.sql("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()").await;
    // A pooled connection that was lost meanwhile causes no error.
    assert_eq!(server.get(paths[1]).await.code, 200);
    drop(proxy);
    for path in paths {
        let answer = server.get(path).await;
        assert_eq!(
            (answer.code, answer.json()),
            (503, Value::from("the database does not answer"))
        );
    }
}

#[tokio::test]
async fn behind_transaction_pooling_answers_are_the_same() {
    let server = ApiServer::with(LIMITS, SessionMode::Transaction).await;
    server.sql(ROWS).await;
    server.log_parses().await;
    for query in [
        "status=failed&_limit=2",
        "status:ne=running&_limit=2",
        "user_name:co=x&_limit=2",
    ] {
        let page = server.get(&format!("/flows/F/runs?{query}")).await;
        assert_eq!(page.numbers(), ["5000", "4999"], "{query}");
    }
    assert_eq!(server.get("/flows/F/runs").await.numbers().len(), 5000);
    let (kept, passing) = server.parses().await;
    assert_eq!(kept, 0);
    assert!(passing >= 8);
}

#[tokio::test]
async fn a_changed_table_name_is_used_without_a_restart() {
    let server = ApiServer::new().await;
    server.sql(ROWS).await;
    let pages = [
        "/flows/F/runs?status=failed&_limit=1",
        "/flows/F/runs?_limit=1",
        "/flows/F/runs?user_name:co=x&_limit=1",
    ];
    for page in pages {
        assert_eq!(server.get(page).await.numbers(), ["5000"]);
    }
    server
        .sql(
            "alter table runs_v3 rename to \"Runs\";
         update status_indexer.state set runs_table = '\"public\".\"Runs\"'",
        )
        .await;
    for page in pages {
        assert_eq!(server.get(page).await.numbers(), ["5000"], "{page}");
    }
    // A prepared statement with an outdated column type is replaced as well.
    server
        .sql("alter table \"Runs\" alter column user_name type text")
        .await;
    for page in pages {
        assert_eq!(server.get(page).await.numbers(), ["5000"], "{page}");
    }
}

#[tokio::test]
async fn sessions_keep_few_prepared_statements() {
    let server = ApiServer::with(ONE_AT_A_TIME, SessionMode::Session).await;
    server.log_parses().await;
    let cursor = "_cursor=eyJ0c19lcG9jaCI6IDMwMCwgInJ1bl9udW1iZXIiOiA0fQ%3D%3D";
    let statuses = [
        "running",
        "failed,running",
        "running,failed,completed",
        "null",
    ];
    for number in 0..40 {
        let status = statuses[number % statuses.len()];
        for rest in ["_limit=7", &format!("user_name=u{number}"), cursor] {
            for query in [format!("status={status}&{rest}"), rest.to_owned()] {
                let path = format!("/flows/F{number}/runs?{query}");
                assert_eq!(server.get(&path).await.code, 200);
            }
        }
    }
    let (kept, passing) = server.parses().await;
    // One per set of statuses and without a filter, each with and without a cursor.
    assert_eq!(kept, 10);
    assert!(passing >= 80, "the others leave nothing: {passing}");
}

#[tokio::test]
async fn the_daemon_serves_the_api_under_its_prefix_from_the_replica() {
    let database = Database::fresh().await;
    let socket = shared().await.directory().display().to_string();
    let daemon = Launch::on(&database)
        .env("PATH_PREFIX", "/meta/")
        .env("MF_METADATA_DB_READ_REPLICA_HOST", &socket)
        .env("USE_SEPARATE_READER_POOL", "1")
        .env("STATUS_INDEXER_SERVICE_VERSION", "2.7.0")
        .start()
        .await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let run = writer.insert_run("F", None).await;
    let base = format!("http://{}/meta", daemon.api().await);
    let path = format!("{base}/flows/F/runs?status=failed");
    eventually(SOON, "the run without a heartbeat is failed", async || {
        let answer = plain().get(&path).send().await.expect("the API answers");
        let answer = read(answer).await;
        assert_eq!(answer.header("metadata_service_version"), Some("2.7.0"));
        answer.code == 200 && answer.numbers() == [run.to_string()]
    })
    .await;
    // The replica of this test is the same server, reached by its socket instead of its address.
    let by_socket = "\
select count(*) > 0 and bool_and(client_addr is null)
  from pg_stat_activity
 where datname = current_database() and query like '-- api.runs%'";
    let row = writer
        .client()
        .query_one(by_socket, &[])
        .await
        .expect("valid");
    assert!(row.get::<_, bool>(0));
    let status = plain()
        .get(format!("{base}/flows/F/runs/{run}/status"))
        .send()
        .await;
    let status = read(status.expect("the API answers")).await.json();
    assert_eq!(status["reason"], "no_heartbeat");
    let explained = Launch::on(&database)
        .args(&["explain", "F", &run.to_string(), "--json"])
        .output()
        .await;
    let mut explained: Value = serde_json::from_slice(&explained.stdout).expect("JSON");
    explained["at_secs"] = status["at_secs"].clone();
    assert_eq!(explained, status);
    let document = read(
        plain()
            .get(format!("{base}/openapi.json"))
            .send()
            .await
            .expect("answers"),
    )
    .await;
    assert_eq!(document.json()["servers"][0]["url"], "/meta");
    let outside = format!("http://{}/flows/F/runs", daemon.api().await);
    assert_eq!(
        plain().get(outside).send().await.expect("answers").status(),
        404
    );
    let counted = daemon
        .metric("status_indexer_http_requests_total{code=\"200\",route=\"runs\"}")
        .await;
    assert!(counted.is_some_and(|count| count >= 1.0));
    assert!(daemon.terminate().await.success());
}

#[tokio::test]
async fn before_the_database_first_answers_requests_return_503() {
    let database = Database::fresh().await;
    let proxy = Proxy::to(shared().await.address()).await;
    proxy.black_hole();
    let daemon = Launch::through(&database, proxy.address()).spawn();
    let url = format!("http://{}/flows/F/runs", daemon.api().await);
    let answer = read(plain().get(&url).send().await.expect("the API answers")).await;
    assert_eq!(
        (answer.code, answer.json()),
        (503, Value::from("the database has not answered yet"))
    );
    proxy.heal();
    daemon.ready().await;
    let answer = read(plain().get(&url).send().await.expect("the API answers")).await;
    assert_eq!((answer.code, answer.text.as_str()), (200, "[]"));
}

#[tokio::test]
async fn a_client_that_reads_nothing_does_not_delay_shutdown() {
    let database = Database::fresh().await;
    let daemon = Launch::on(&database).start().await;
    let client = database.client().await;
    client.batch_execute(ROWS).await.expect("valid SQL");
    let mut slow = tokio::net::TcpStream::connect(daemon.api().await)
        .await
        .expect("the API listens");
    slow.write_all(b"GET /flows/F/runs HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("the API reads");
    let mut start = [0; 1000];
    slow.read_exact(&mut start).await.expect("it has begun");
    assert!(daemon.terminate().await.success());
}
