//! Pages by status over HTTP, compared with the bare statement and with the metadata service
//! itself.
//!
//! The bare statement is the one that the API sends, as `pg_stat_activity` shows it. `pgbench`
//! measures it, if it is installed with the server's programs. `wrk` measures HTTP, so that both
//! load generators are written in C; without `wrk`, a simple client in this file is used, which
//! takes more of the machine. The metadata service is not part of this repository: `--upstream`
//! takes the command that starts a copy of it. That command receives the database in the service's
//! usual variables and the port in `MF_METADATA_PORT`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::env::{BenchEnv, LONG_CUTOFF_SECS};
use crate::load::closed_loop;
use crate::pages::{DONE_FLOW, Query, add_done_flow, middle};
use crate::report::{Durations, Report, Target};
use crate::usage::Meter;
use testkit::database::Database;

/// How long one load runs.
const LOAD: Duration = Duration::from_secs(4);

/// A request that takes at least this long is slow.
const SLOW: Duration = Duration::from_millis(50);

/// How long the metadata service may take to start: it loads Python's libraries first.
const TIMEOUT: Duration = Duration::from_secs(60);

const CLIENTS: [usize; 2] = [1, 8];

pub(crate) async fn run(env: &mut BenchEnv) -> Result<Report> {
    let settings = env.settings.clone();
    let mut report = Report::new(
        "api",
        format!(
            "pages of 50, {} s each, {} runs in the flow",
            LOAD.as_secs(),
            settings.runs
        ),
    );
    let pgbench = pgbench(env.server.pid());
    let (database, daemon) = env.indexed_dataset().await?;
    let client = database.client().await;
    add_done_flow(&client).await?;
    let middle = middle(&client, settings.runs).await?;
    let ours = daemon.api().await;
    for query in Query::ALL {
        for clients in CLIENTS {
            let at = |what: &str| format!("{}, {clients} clients: {what}", query.what);
            let process = Meter::start([daemon.pid()]);
            let http = over_http(ours, &path(query, middle), clients).await?;
            report.record(&at("HTTP"), http.per_second, "/s");
            report.record(&at("HTTP p50"), http.p50_ms, "ms");
            report.record(&at("HTTP p99"), http.p99_ms, "ms");
            report.record(&at("CPU of the daemon"), process.percent(), "% of a core");
            match &pgbench {
                Some(program) => {
                    let statement = sent(&client).await?;
                    let sent = as_script(query, middle, &statement);
                    let sent = bare(program, database, query, &sent, clients).await?;
                    report.record(&at("bare statement"), sent, "/s");
                    let ratio = http.per_second / sent;
                    report.figure(&at("HTTP / bare"), ratio, "", Target::AtLeast(0.5));
                    let plain = query.with_values(middle);
                    let plain = bare(program, database, query, &plain, clients).await?;
                    report.record(
                        &at("HTTP / one range per status"),
                        http.per_second / plain,
                        "",
                    );
                }
                None => report.note(
                    &at("bare statement"),
                    "not measured: pgbench is not installed",
                ),
            }
        }
    }
    if let Some(upstream) = &settings.upstream {
        beside_upstream(&mut report, database, upstream, ours, middle).await?;
    }
    daemon.terminate().await;
    Ok(report)
}

/// Sends the same requests to the metadata service, on the same data.
async fn beside_upstream(
    report: &mut Report,
    database: &Database,
    command: &str,
    ours: SocketAddr,
    middle: (i64, i32),
) -> Result<()> {
    let (_service, theirs) = start_upstream(database, command).await?;
    for query in Query::ALL.iter().filter(|query| query.statuses.len() < 2) {
        for clients in CLIENTS {
            let at = |what: &str| format!("{}, {clients} clients: {what}", query.what);
            let path = path(query, middle);
            let us = over_http(ours, &path, clients).await?;
            let them = over_http(theirs, &path, clients).await?;
            report.record(&at("metadata service"), them.per_second, "/s");
            report.record(&at("metadata service p50"), them.p50_ms, "ms");
            report.figure(
                &at("read API / metadata service"),
                us.per_second / them.per_second,
                "",
                Target::AtLeast(10.0),
            );
            let times = them.p50_ms / us.p50_ms;
            // The service is slowest for a rare status deep in the flow, and for one that no run
            // has.
            let far = query.deep && query.statuses == ["running"] || query.flow == DONE_FLOW;
            let target = if far {
                Target::AtLeast(1000.0)
            } else {
                Target::None
            };
            report.figure(
                &at("p50 of the metadata service / read API"),
                times,
                "",
                target,
            );
        }
    }
    Ok(())
}

/// The path that a client requests.
fn path(query: &Query, middle: (i64, i32)) -> String {
    let status = match query.statuses {
        [] => String::new(),
        statuses => format!("&status={}", statuses.join(",")),
    };
    let cursor = if query.deep {
        let json = format!(
            r#"{{"ts_epoch": {}, "run_number": {}}}"#,
            middle.0, middle.1
        );
        let cursor = STANDARD.encode(json);
        let escaped = cursor.replace('+', "%2B").replace('/', "%2F");
        format!("&_cursor={}", escaped.replace('=', "%3D"))
    } else {
        String::new()
    };
    format!("/flows/{}/runs?_limit=50{status}{cursor}", query.flow)
}

/// A persistent connection: the smallest client possible.
struct Connection(Mutex<BufReader<TcpStream>>);

impl Connection {
    async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self(Mutex::new(BufReader::with_capacity(1 << 16, stream))))
    }

    async fn get(&self, request: &str) -> Result<()> {
        let mut stream = self.0.lock().await;
        stream.write_all(request.as_bytes()).await?;
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let status = line.trim().to_owned();
        let mut length = None;
        loop {
            line.clear();
            stream.read_line(&mut line).await?;
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse()?);
            }
        }
        let mut body = vec![0; length.context("an answer has a length")?];
        stream.read_exact(&mut body).await?;
        ensure!(
            status.contains(" 200 "),
            "answered {status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok(())
    }
}

/// The result of a load of requests.
struct Answers {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

async fn over_http(address: SocketAddr, path: &str, clients: usize) -> Result<Answers> {
    // One request that must succeed, before any is counted.
    let connection = Connection::open(address).await?;
    let start = Instant::now();
    connection.get(&request(address, path)).await?;
    // `wrk` does not count requests that are unfinished at its end. For slow requests the cost of
    // our own client does not matter.
    if start.elapsed() < SLOW
        && let Some(answers) = by_wrk(address, path, clients).await?
    {
        return Ok(answers);
    }
    by_ourselves(address, path, clients).await
}

fn request(address: SocketAddr, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n")
}

/// Measures with `wrk`; none if it is not installed.
async fn by_wrk(address: SocketAddr, path: &str, clients: usize) -> Result<Option<Answers>> {
    /// All times are in microseconds.
    const SCRIPT: &str = "\
done = function(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('result %d %d %d %f %f\\n', summary.requests, summary.duration, failed,
                         latency:percentile(50), latency:percentile(99)))
end
";
    let directory = tempfile::tempdir()?;
    let script = directory.path().join("result.lua");
    std::fs::write(&script, SCRIPT)?;
    let output = Command::new("wrk")
        .args(["--threads", "1", "--connections", &clients.to_string()])
        .args(["--duration", &format!("{}s", LOAD.as_secs())])
        .arg("--script")
        .arg(&script)
        .arg(format!("http://{address}{path}"))
        .output()
        .await;
    let output = match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        output => output?,
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let result = text.lines().find_map(|line| line.strip_prefix("result "));
    let result = result.with_context(|| format!("wrk: {text}"))?;
    let numbers = result.split(' ').map(str::parse);
    let numbers: Vec<f64> = numbers.collect::<Result<_, _>>()?;
    let [requests, micros, failed, p50, p99] = numbers[..] else {
        bail!("wrk printed {result}");
    };
    ensure!(failed == 0.0, "{failed} requests failed");
    Ok(Some(Answers {
        per_second: requests / micros * 1e6,
        p50_ms: p50 / 1e3,
        p99_ms: p99 / 1e3,
    }))
}

async fn by_ourselves(address: SocketAddr, path: &str, clients: usize) -> Result<Answers> {
    let request = request(address, path);
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(Connection::open(address).await?);
    }
    let times = Mutex::new(Durations::new());
    let rate = closed_loop(&connections, LOAD, async |connection, _| {
        let start = Instant::now();
        connection.get(&request).await?;
        times.lock().await.record(start.elapsed());
        Ok(())
    })
    .await?;
    let times = times.into_inner();
    Ok(Answers {
        per_second: rate,
        p50_ms: times.quantile_ms(0.5),
        p99_ms: times.quantile_ms(0.99),
    })
}

/// `pgbench`, if it is in the directory of the server's program.
fn pgbench(postmaster: Option<u32>) -> Option<PathBuf> {
    let server = std::fs::read_link(format!("/proc/{}/exe", postmaster?)).ok()?;
    Some(server.with_file_name("pgbench")).filter(|program| program.exists())
}

/// The API's last statement, as the server received it.
async fn sent(client: &Client) -> Result<String> {
    const SENT: &str = "\
select query
  from pg_stat_activity
 where query like '-- api.runs%'
   and datname = current_database()
 order by query_start desc
 limit 1";
    Ok(client.query_one(SENT, &[]).await?.get(0))
}

/// The API's statement, with its parameters replaced by variables of `pgbench`.
fn as_script(query: &Query, middle: (i64, i32), statement: &str) -> String {
    let mut values = vec![
        "flow".to_owned(),
        "rows::bigint".to_owned(),
        "skipped::bigint".to_owned(),
    ];
    if query.deep {
        values.extend(["ts::bigint".to_owned(), "number::bigint".to_owned()]);
    }
    values.extend(query.statuses.iter().map(|status| (*status).to_owned()));
    let mut sql = statement.to_owned();
    for (at, value) in values.iter().enumerate().rev() {
        sql = sql.replace(&format!("${}", at + 1), &format!(":{value}"));
    }
    format!(
        "\\set rows 51\n\\set skipped 0\n\\set ts {}\n\\set number {}\n{sql}",
        middle.0, middle.1
    )
}

/// Calls per second of a prepared statement.
async fn bare(
    program: &PathBuf,
    database: &Database,
    query: &Query,
    sql: &str,
    clients: usize,
) -> Result<f64> {
    let directory = tempfile::tempdir()?;
    let script = directory.path().join("page.sql");
    std::fs::write(&script, format!("{sql};\n"))?;
    let statuses = ["running", "completed", "failed"].map(|status| format!("{status}={status}"));
    let texts = statuses.into_iter().chain([format!("flow={}", query.flow)]);
    let output = Command::new(program)
        .args(["--no-vacuum", "--protocol", "prepared", "--file"])
        .arg(&script)
        .args(["--client", &clients.to_string()])
        .args(["--jobs", &clients.min(2).to_string()])
        .args(["--time", &LOAD.as_secs().to_string()])
        .args(texts.flat_map(|text| ["--define".to_owned(), text]))
        .arg(database.url())
        .env(
            "PGOPTIONS",
            "-c jit=off -c plan_cache_mode=force_generic_plan -c enable_sort=off -c enable_bitmapscan=off",
        )
        .output()
        .await?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().find_map(|line| {
        let rest = line.strip_prefix("tps = ")?;
        rest.split(' ').next()?.parse().ok()
    });
    found.with_context(|| format!("pgbench: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Starts the metadata service and waits until it accepts connections.
async fn start_upstream(database: &Database, command: &str) -> Result<(Child, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    drop(listener);
    let config = database.config();
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let mut child = Command::new("sh")
        .args(["-c", &format!("exec {command}")])
        .env("MF_METADATA_DB_HOST", "127.0.0.1")
        .env("MF_METADATA_DB_PORT", port.to_string())
        .env("MF_METADATA_DB_USER", "postgres")
        .env("MF_METADATA_DB_PSWD", "none")
        .env("MF_METADATA_DB_NAME", database.name())
        .env("MF_METADATA_HOST", "127.0.0.1")
        .env("MF_METADATA_PORT", address.port().to_string())
        .env("RUN_INACTIVE_CUTOFF_TIME", LONG_CUTOFF_SECS.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if TcpStream::connect(address).await.is_ok() {
            return Ok((child, address));
        }
        if let Some(ended) = child.try_wait()? {
            bail!("the metadata service ended: {ended}");
        }
        ensure!(
            Instant::now() < deadline,
            "the metadata service does not listen"
        );
        sleep(Duration::from_millis(200)).await;
    }
}
