//! Several hosts, and hosts that take long: each has its own limit, and the next one is tried.

use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::wait::eventually;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{TIMEOUT, leads, set_up_run};

/// Starts a daemon that connects by this string, and follows one event to its status.
async fn follows(database: &Database, launch: Launch) {
    Launch::on(database).args(&["migrate"]).succeed().await;
    let (writer, run) = set_up_run(database).await;
    let daemon = launch
        .args(&[
            "run",
            "--metrics-listen",
            "127.0.0.1:0",
            "--session-mode",
            "session",
        ])
        .spawn();
    eventually(TIMEOUT, "the daemon leads", async || leads(&daemon).await).await;
    let connected = "status_indexer_listener_connected";
    assert_eq!(daemon.metric(connected).await, Some(1.0));
    writer
        .attempt_ok("F", run, "True", writer.now_ms().await)
        .await;
    eventually(TIMEOUT, "the status follows", async || {
        writer.status("F", run).await == "completed"
    })
    .await;
    assert!(daemon.terminate().await.success());
}

fn with_first(database: &Database, first: std::net::SocketAddr) -> String {
    let port = database.config().get_ports()[0];
    format!(
        "postgresql://postgres@{first},127.0.0.1:{port}/{}\
         ?target_session_attrs=read-write&connect_timeout=2",
        database.name()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_host_that_accepts_and_stays_silent_costs_its_own_limit_only() {
    let database = Database::fresh().await;
    // The kernel accepts connections to it, but no process answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let first = silent.local_addr().expect("it is bound");
    let url = with_first(&database, first);
    follows(&database, Launch::on(&database).env("DATABASE_URL", &url)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_host_that_drops_packets_costs_its_own_limit_only() {
    let database = Database::fresh().await;
    let socket = TcpSocket::new_v4().expect("a socket");
    let any = "127.0.0.1:0".parse().expect("an address");
    socket.bind(any).expect("a free port");
    let full = socket.listen(1).expect("a bound socket");
    let first = full.local_addr().expect("it is bound");
    // Fills the backlog: the kernel drops what comes after.
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..8 {
        waiting.spawn(TcpStream::connect(first));
    }
    let _connected = waiting.join_next().await;
    let url = with_first(&database, first);
    follows(&database, Launch::on(&database).env("DATABASE_URL", &url)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_takes_longer_than_five_seconds_is_not_a_failure() {
    let database = Database::fresh().await;
    let url = format!("{}?options=-cpost_auth_delay%3D6", database.url());
    let launch = Launch::on(&database)
        .env("DATABASE_URL", &url)
        .env("MF_METADATA_DB_TIMEOUT", "30");
    follows(&database, launch).await;
}
