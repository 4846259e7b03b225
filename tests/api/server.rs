//! The API on a database of the test's own, without the daemon's stages: the statuses are those
//! that the test writes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use serde_json::Value;
use status_indexer::api::{Api, Limits, Reader};
use status_indexer::http::Access;
use status_indexer::metrics::Metrics;
use status_indexer::migrate::{self, TableNames};
use status_indexer::pg::{Connector, SessionMode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_postgres::config::Host;
use tokio_postgres::{Client, Config};
use tokio_util::sync::{CancellationToken, DropGuard};

use testkit::database::{Database, shared};

pub(super) const LIMITS: Limits = Limits {
    pool_max: 4,
    queue: 64,
    statement: Duration::from_secs(10),
};

/// The API and its database; both are removed when it is dropped.
pub(super) struct ApiServer {
    pub(super) database: Arc<Database>,
    pub(super) client: Client,
    pub(super) metrics: Metrics,
    pub(super) address: SocketAddr,
    http: reqwest::Client,
    _stop: DropGuard,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).expect("every body is JSON")
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value.as_str()))
    }

    /// The numbers of the runs as they are shown, as text.
    pub(super) fn numbers(&self) -> Vec<String> {
        assert_eq!(self.code, 200, "{}", self.text);
        let runs = self.json();
        let number = |run: &Value| match &run["run_number"] {
            Value::String(id) => id.clone(),
            other => other.to_string(),
        };
        let runs = runs.as_array().expect("an array of runs");
        runs.iter().map(number).collect()
    }
}

impl ApiServer {
    pub(super) async fn new() -> Self {
        Self::with(LIMITS, SessionMode::Session).await
    }

    pub(super) async fn with(limits: Limits, mode: SessionMode) -> Self {
        let database = Database::fresh().await;
        let config = database.config();
        Self::on(database, config, limits, mode).await
    }

    /// The API connects with this configuration.
    pub(super) async fn on(
        database: Database,
        config: Config,
        limits: Limits,
        mode: SessionMode,
    ) -> Self {
        install(&database).await;
        let client = database.client().await;
        client
            .batch_execute(COLUMN_IS_EXACT)
            .await
            .expect("valid SQL");
        Self::serving(Arc::new(database), client, connector(&config), limits, mode).await
    }

    /// Another API, which reads from the same database or a replica of it.
    pub(super) async fn beside(&self, connector: Connector) -> Self {
        let (database, client) = (Arc::clone(&self.database), self.database.client().await);
        Self::serving(database, client, connector, LIMITS, SessionMode::Session).await
    }

    async fn serving(
        database: Arc<Database>,
        client: Client,
        connector: Connector,
        limits: Limits,
        mode: SessionMode,
    ) -> Self {
        let table: String = client
            .query_one("select runs_table from status_indexer.state", &[])
            .await
            .expect("the schema is there")
            .get(0);
        let stop = CancellationToken::new();
        let metrics = Metrics::new();
        let version = HeaderValue::from_static("2.6.1");
        let api = Api::new(
            String::new(),
            version,
            Access::default(),
            metrics.clone(),
            stop.clone(),
        );
        api.open(Reader::new(
            &connector,
            mode,
            limits,
            &table,
            metrics.clone(),
        ));
        let bound = status_indexer::http::bind(([127, 0, 0, 1], 0).into())
            .await
            .expect("a free port");
        let address = bound.addr;
        tokio::spawn(status_indexer::http::serve(
            bound,
            api.routes(),
            status_indexer::http::Limits::api(
                64,
                Duration::from_secs(60),
                Duration::from_secs(600),
            ),
            metrics.clone(),
            stop.clone(),
        ));
        Self {
            database,
            client,
            metrics,
            address,
            http: plain(),
            _stop: stop.drop_guard(),
        }
    }

    /// Runs statements of the test's own.
    pub(super) async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.expect("valid SQL");
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// GET of a path with its query, unchanged.
    pub(super) async fn get(&self, path: &str) -> Answer {
        self.request(reqwest::Method::GET, path).await
    }

    pub(super) async fn request(&self, method: reqwest::Method, path: &str) -> Answer {
        let answer = self.http.request(method, self.url(path)).send().await;
        read(answer.expect("the API answers")).await
    }

    /// GET of the runs of the flow `F`, with these parameters, which are encoded here.
    pub(super) async fn runs(&self, params: &[(&str, &str)]) -> Answer {
        let request = self.http.get(self.url("/flows/F/runs")).query(params);
        read(request.send().await.expect("the API answers")).await
    }

    /// Sends bytes as they are and returns the code of the answer; none where the connection was
    /// closed without one.
    pub(super) async fn raw(&self, bytes: &[u8]) -> Option<u16> {
        let mut stream = self.dial().await;
        // The connection may be closed before all bytes are sent.
        let _ = stream.write_all(bytes).await;
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text).await;
        let head = String::from_utf8_lossy(&text);
        head.split(' ').nth(1)?.parse().ok()
    }

    pub(super) async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address)
            .await
            .expect("the API listens")
    }

    /// Logs what new sessions parse.
    pub(super) async fn log_parses(&self) {
        let name = self.database.name();
        self.sql(&format!(
            "alter database {name} set log_min_duration_statement = 0"
        ))
        .await;
    }

    /// How many statements were parsed since then: named ones, and unnamed ones.
    pub(super) async fn parses(&self) -> (usize, usize) {
        (
            self.logged("  parse s").await,
            self.logged("  parse <unnamed>").await,
        )
    }

    /// How many lines of the server's log about this database contain the text.
    pub(super) async fn logged(&self, text: &str) -> usize {
        let log = shared().await.log_tail(usize::MAX);
        let place = format!("] {} ", self.database.name());
        log.lines()
            .filter(|line| line.contains(&place) && line.contains(text))
            .count()
    }

    /// Locks the table of runs in a session of its own, until [`unlock`]. (Within a transaction,
    /// the catalog of sessions would be a snapshot.)
    pub(super) async fn lock(&self) -> Client {
        let blocker = self.database.client().await;
        blocker
            .batch_execute("begin; lock table runs_v3 in access exclusive mode")
            .await
            .expect("no other session holds the table");
        blocker
    }

    /// How many sessions of the API wait for a lock.
    pub(super) async fn blocked(&self) -> i64 {
        const BLOCKED: &str = "\
select count(*)
  from pg_stat_activity
 where datname = current_database()
   and wait_event_type = 'Lock'
   and query ~ '^-- (api|explain)[.]'";
        let row = self.client.query_one(BLOCKED, &[]).await;
        row.expect("the catalog can be read").get(0)
    }
}

/// Reads an answer to its end.
pub(super) async fn read(answer: reqwest::Response) -> Answer {
    let code = answer.status().as_u16();
    let headers = answer
        .headers()
        .iter()
        .map(|(name, value)| {
            let value = value.to_str().expect("headers are ASCII");
            (name.to_string(), value.to_owned())
        })
        .collect();
    let text = answer.text().await.expect("the body is complete");
    Answer {
        code,
        headers,
        text,
    }
}

pub(super) fn plain() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(30))
        .build()
        .expect("a plain client needs nothing")
}

pub(super) fn connector(config: &Config) -> Connector {
    let Some(Host::Tcp(host)) = config.get_hosts().first() else {
        panic!("tests connect by TCP");
    };
    let dsn = format!(
        "host={host} port={} user={} dbname={} options='{}'",
        config.get_ports()[0],
        config.get_user().expect("tests name the role"),
        config.get_dbname().expect("tests name the database"),
        config.get_options().unwrap_or_default(),
    );
    Connector::to(&dsn).expect("the parameters are valid")
}

/// Releases what [`ApiServer::lock`] locked.
pub(super) async fn unlock(blocker: &Client) {
    blocker
        .batch_execute("rollback")
        .await
        .expect("the session is alive");
}

/// The status of each run is what the test writes into the column: no run is in the queue, and no
/// deadline passes. `exact.rs` has the tests of the other runs.
const COLUMN_IS_EXACT: &str = "\
update status_indexer.state
   set valid_since = now(), deadlines_from = to_timestamp(0), deadlines_until = to_timestamp(253402300799);
alter table runs_v3 disable trigger status_indexer_insert;
alter table runs_v3 disable trigger status_indexer_heartbeat;";

async fn install(database: &Database) {
    let options = migrate::Options {
        names: TableNames {
            runs: "runs_v3".to_owned(),
            metadata: "metadata_v3".to_owned(),
            schema: None,
        },
        cutoff_secs: 360,
        grant_to: None,
        grant_dump_to: Vec::new(),
        allow_publications: false,
        ui: status_indexer::migrate::Ui::AsIs,
    };
    migrate::up(
        &connector(&database.config()),
        &options,
        &CancellationToken::new(),
    )
    .await
    .expect("upstream's tables can be migrated");
}
