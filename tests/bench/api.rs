//! Pages by status over HTTP, against the bare statement, and against the metadata service itself.
//!
//! What the bare statement reaches is `pgbench`'s to say, where the server's programs have one. The
//! service is no part of this repository: `--upstream` takes the command that starts a copy of it,
//! which finds the database in its usual variables and its port in `MF_METADATA_PORT`.

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

use crate::load::closed_loop;
use crate::pages::{DONE_FLOW, Query, add_done_flow, middle};
use crate::report::{Durations, Report, Target};
use crate::site::{LONG_CUTOFF_SECS, Site};
use crate::support::database::Database;
use crate::usage::Meter;

/// Seconds of one load.
const LOAD: Duration = Duration::from_secs(4);

/// The service needs to load Python's libraries first.
const PATIENCE: Duration = Duration::from_secs(60);

const CLIENTS: [usize; 2] = [1, 8];

pub(crate) async fn run(site: &mut Site) -> Result<Report> {
    let settings = site.settings.clone();
    let mut report = Report::new(
        "api",
        format!(
            "pages of 50, {} s each, {} runs in the flow",
            LOAD.as_secs(),
            settings.runs
        ),
    );
    let pgbench = pgbench(site.server.pid());
    let (database, daemon) = site.indexed_dataset().await?;
    let client = database.client().await;
    add_done_flow(&client).await?;
    let middle = middle(&client, settings.runs).await?;
    let ours = daemon.api().await;
    for query in Query::ALL {
        for clients in CLIENTS {
            let at = |what: &str| format!("{}, {clients} clients: {what}", query.what);
            let process = Meter::start([daemon.pid()]);
            let (http, times) = over_http(ours, &path(query, middle), clients).await?;
            report.record(&at("HTTP"), http, "/s");
            report.record(&at("HTTP p50"), times.quantile_ms(0.5), "ms");
            report.record(&at("HTTP p99"), times.quantile_ms(0.99), "ms");
            report.record(&at("CPU of the daemon"), process.percent(), "% of a core");
            match &pgbench {
                Some(program) => {
                    let bare = bare(program, database, query, middle, clients).await?;
                    report.record(&at("bare statement"), bare, "/s");
                    let ratio = http / bare;
                    report.figure(&at("HTTP / bare"), ratio, "", Target::AtLeast(0.5));
                }
                None => report.note(&at("bare statement"), "unknown: there is no pgbench"),
            }
        }
    }
    if let Some(upstream) = &settings.upstream {
        beside_upstream(&mut report, database, upstream, ours, middle).await?;
    }
    daemon.terminate().await;
    Ok(report)
}

/// The same requests to the metadata service, on the same data.
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
            let (us, our_times) = over_http(ours, &path, clients).await?;
            let (them, their_times) = over_http(theirs, &path, clients).await?;
            report.record(&at("the service"), them, "/s");
            report.record(&at("the service p50"), their_times.quantile_ms(0.5), "ms");
            report.figure(
                &at("ours / the service"),
                us / them,
                "",
                Target::AtLeast(10.0),
            );
            let times = their_times.quantile_ms(0.5) / our_times.quantile_ms(0.5);
            // The rare status far down, or nowhere, is what hurts there.
            let far = query.deep && query.statuses == ["running"] || query.flow == DONE_FLOW;
            let target = if far {
                Target::AtLeast(1000.0)
            } else {
                Target::None
            };
            report.figure(&at("p50 of the service / ours"), times, "", target);
        }
    }
    Ok(())
}

/// What a client asks for.
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

/// A connection that is kept: as little of a client as can be.
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
        let mut body = vec![0; length.context("an answer tells its length")?];
        stream.read_exact(&mut body).await?;
        ensure!(
            status.contains(" 200 "),
            "answered {status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok(())
    }
}

/// Requests a second, and how long each took.
async fn over_http(address: SocketAddr, path: &str, clients: usize) -> Result<(f64, Durations)> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let mut connections = Vec::new();
    for _ in 0..clients {
        let connection = Connection::open(address).await?;
        connection.get(&request).await?;
        connections.push(connection);
    }
    let times = Mutex::new(Durations::new());
    let rate = closed_loop(&connections, LOAD, async |connection, _| {
        let start = Instant::now();
        connection.get(&request).await?;
        times.lock().await.record(start.elapsed());
        Ok(())
    })
    .await?;
    Ok((rate, times.into_inner()))
}

/// It lies beside the server's program.
fn pgbench(postmaster: Option<u32>) -> Option<PathBuf> {
    let server = std::fs::read_link(format!("/proc/{}/exe", postmaster?)).ok()?;
    Some(server.with_file_name("pgbench")).filter(|program| program.exists())
}

/// Calls of the bare prepared statement a second.
async fn bare(
    program: &PathBuf,
    database: &Database,
    query: &Query,
    middle: (i64, i32),
    clients: usize,
) -> Result<f64> {
    let directory = tempfile::tempdir()?;
    let script = directory.path().join("page.sql");
    std::fs::write(&script, format!("{};\n", query.with_values(middle)))?;
    let output = Command::new(program)
        .args(["--no-vacuum", "--protocol", "prepared", "--file"])
        .arg(&script)
        .args(["--client", &clients.to_string()])
        .args(["--jobs", &clients.min(2).to_string()])
        .args(["--time", &LOAD.as_secs().to_string()])
        .arg(database.url())
        .env(
            "PGOPTIONS",
            "-c jit=off -c plan_cache_mode=force_generic_plan",
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

/// Starts the service and waits until it takes connections.
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
    let deadline = Instant::now() + PATIENCE;
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
