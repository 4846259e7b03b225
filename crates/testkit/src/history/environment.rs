//! The environment of histories: a server, a database, a network that fails, and up to two daemons.
//!
//! Owns the faults. Promises that after [`Environment::recover`] one daemon runs with a working
//! network and server, and that the drift which any of its daemons reported is known, also of those
//! that were killed. Called by [`super::campaign`], [`super::run`] and the tests.

use std::ops::Deref;
use std::sync::Arc;

use crate::postgres::{Options, Postgres};
use serde_json::Value;
use tokio_postgres::Client;

use super::flow_model::FlowModel;
use super::step::Fault;
use crate::daemon::{Daemon, Launch};
use crate::database::{Database, connect, drop_database, shared};
use crate::proxy::Proxy;

/// Connections that write: as many histories of a round are written at the same time.
pub const WRITERS: usize = 12;

/// The application name of the environment's own sessions, which faults do not affect.
const APPLICATION: &str = "history";

const TRIGGERS: [(&str, &str); 5] = [
    ("runs_v3", "insert"),
    ("runs_v3", "heartbeat"),
    ("metadata_v3", "insert"),
    ("metadata_v3", "update"),
    ("metadata_v3", "delete"),
];

/// The server of an environment.
#[derive(Debug, Clone)]
pub enum Server {
    /// The one that tests share.
    Shared(&'static Postgres),
    /// One that faults may crash.
    Own(Arc<Postgres>),
}

impl Server {
    /// The server that tests share.
    pub async fn shared() -> Self {
        Self::Shared(shared().await)
    }

    /// A server of our own, which loses no committed transaction when it is killed.
    ///
    /// # Panics
    /// If it cannot be started.
    pub async fn own() -> Self {
        let server = Postgres::start(Options::default()).await;
        Self::Own(Arc::new(server.expect("a server of our own")))
    }
}

impl Deref for Server {
    type Target = Postgres;

    fn deref(&self) -> &Postgres {
        match self {
            Self::Shared(server) => server,
            Self::Own(server) => server,
        }
    }
}

/// A flow and its model.
#[derive(Debug)]
pub struct History {
    /// The flow's name.
    pub flow: String,
    /// Added to the numbers of its metadata rows, which are unique in their table.
    pub base: i64,
    /// What was written to it.
    pub model: FlowModel,
}

/// See the module.
pub struct Environment {
    server: Server,
    database: Database,
    proxy: Proxy,
    /// The cutoff of its daemons, seconds.
    pub cutoff: i64,
    /// Other environment variables of its daemons.
    settings: &'static [(&'static str, &'static str)],
    /// Whether only events change a status here.
    pub events_only: bool,
    /// All histories that ever ran here.
    pub histories: Vec<History>,
    /// Connections that write, one for each history of a round.
    pub writers: Vec<Client>,
    first: Option<Daemon>,
    second: Option<Daemon>,
    frozen: bool,
    unreachable: bool,
    /// Whether the indexer's triggers are disabled.
    pub triggers_off: bool,
    /// Log lines about drift, of daemons that have ended.
    earlier_drift: Vec<Value>,
}

impl Environment {
    /// A new database with a daemon that is ready and reconciles as fast as it can.
    pub async fn open(server: &Server, cutoff: i64) -> Self {
        const SETTINGS: &[(&str, &str)] = &[
            ("STATUS_INDEXER_RECONCILE_INTERVAL", "1"),
            ("STATUS_INDEXER_RECONCILE_RATE", "1000000"),
            ("STATUS_INDEXER_SWEEP_INTERVAL", "1"),
        ];
        Self::open_with(server, cutoff, SETTINGS, false).await
    }

    /// The same, but neither the reconciler nor the sweeper scans again: only an event changes a
    /// status. A status that is incorrect when the queue is empty stays so, as long as no heartbeat
    /// comes near the cutoff.
    pub async fn open_events_only(server: &Server, cutoff: i64) -> Self {
        const SETTINGS: &[(&str, &str)] = &[
            ("STATUS_INDEXER_RECONCILE_INTERVAL", "86400"),
            ("STATUS_INDEXER_SWEEP_INTERVAL", "3600"),
        ];
        Self::open_with(server, cutoff, SETTINGS, true).await
    }

    async fn open_with(
        server: &Server,
        cutoff: i64,
        settings: &'static [(&'static str, &'static str)],
        events_only: bool,
    ) -> Self {
        let database = match server {
            Server::Shared(_) => Database::fresh().await,
            Server::Own(server) => Database::on(server).await,
        };
        let mut environment = Self {
            proxy: Proxy::to(server.address()).await,
            writers: writers(&database).await,
            server: server.clone(),
            database,
            cutoff,
            settings,
            events_only,
            histories: Vec::new(),
            first: None,
            second: None,
            frozen: false,
            unreachable: false,
            triggers_off: false,
            earlier_drift: Vec::new(),
        };
        environment.start();
        environment.first().ready().await;
        environment
    }

    /// Kills the daemons and drops the database; the server stays.
    ///
    /// # Panics
    /// If the database cannot be dropped.
    pub async fn close(mut self) {
        for daemon in [self.first.take(), self.second.take()]
            .into_iter()
            .flatten()
        {
            daemon.kill9().await;
        }
        let admin = connect(&self.server.config("postgres")).await;
        let dropped = drop_database(&admin, self.database.name()).await;
        dropped.expect("the database is ours");
    }

    /// Deletes what was written, so that it is not checked again. New flows have other names.
    ///
    /// # Panics
    /// If the tables cannot be emptied.
    pub async fn forget(&mut self) {
        const FORGET: &str = "truncate runs_v3, metadata_v3, steps_v3, tasks_v3, artifact_v3";
        let forgotten = self.client().batch_execute(FORGET).await;
        forgotten.expect("no other session holds the tables");
        for history in &mut self.histories {
            history.model = FlowModel::default();
        }
    }

    /// A connection of the environment's own.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.writers[0]
    }

    /// Whether it can settle in its present state.
    #[must_use]
    pub fn can_settle(&self) -> bool {
        self.first.is_some() && !self.frozen && !self.unreachable
    }

    /// Injects a fault, where that is possible in the present state.
    ///
    /// # Panics
    /// If the fault itself fails, as a server that does not come back.
    pub async fn inject_fault(&mut self, fault: Fault) {
        match fault {
            Fault::Kill => self.kill().await,
            Fault::Start => self.start(),
            Fault::Replace => self.replace().await,
            Fault::Freeze => self.freeze().await,
            Fault::Thaw => self.thaw(),
            Fault::Join => {
                if self.second.is_none() {
                    self.second = Some(self.prepared(Launch::on(&self.database)).spawn());
                }
            }
            Fault::Leave => self.stop_second().await,
            Fault::CutSessions => self.cut_sessions().await,
            Fault::CutNetwork => self.proxy.cut(),
            Fault::BlackHole => {
                self.proxy.black_hole();
                self.unreachable = true;
            }
            Fault::Heal => self.heal(),
            Fault::Crash => {
                self.server.kill9().await.expect("the server can be killed");
                self.server
                    .start_again()
                    .await
                    .expect("the server starts again");
                self.writers = writers(&self.database).await;
            }
            Fault::Restart => {
                self.server
                    .restart()
                    .await
                    .expect("the server stops and starts");
                self.writers = writers(&self.database).await;
            }
            Fault::Migrate => {
                let migrate = Launch::on(&self.database).args(&["migrate", "up"]);
                migrate.succeed().await;
            }
            Fault::TriggersOff => self.switch_triggers(false).await,
            Fault::TriggersOn => self.switch_triggers(true).await,
        }
    }

    /// Undoes the effects of the faults.
    pub async fn recover(&mut self) {
        self.heal();
        self.thaw();
        self.start();
        if self.triggers_off {
            self.switch_triggers(true).await;
        }
    }

    /// Kills the second daemon, if there is one.
    pub async fn stop_second(&mut self) {
        if let Some(daemon) = self.second.take() {
            daemon.kill9().await;
            self.earlier_drift.extend(drift_in(&daemon));
        }
    }

    /// The drift that the daemons have logged, a line for each run.
    #[must_use]
    pub fn drift(&self) -> Vec<Value> {
        let alive = [&self.first, &self.second].into_iter().flatten();
        let mut lines = self.earlier_drift.clone();
        lines.extend(alive.flat_map(drift_in));
        lines
    }

    fn first(&self) -> &Daemon {
        self.first.as_ref().expect("it was started")
    }

    fn prepared(&self, launch: Launch) -> Launch {
        let cutoff = self.cutoff.to_string();
        let launch = launch.env("RUN_INACTIVE_CUTOFF_TIME", &cutoff);
        self.settings
            .iter()
            .fold(launch, |launch, (name, value)| launch.env(name, value))
    }

    fn start(&mut self) {
        if self.first.is_none() {
            let launch = Launch::through(&self.database, self.proxy.address());
            self.first = Some(self.prepared(launch).spawn());
        }
    }

    async fn kill(&mut self) {
        if let Some(daemon) = self.first.take() {
            daemon.kill9().await;
            self.earlier_drift.extend(drift_in(&daemon));
            self.frozen = false;
        }
    }

    async fn replace(&mut self) {
        // A frozen process does not handle signals.
        self.thaw();
        if let Some(daemon) = self.first.take() {
            // A process that has not installed its handlers yet dies from the signal.
            daemon.address().await;
            let ended = daemon.terminate().await;
            assert!(ended.success(), "asked to stop, it ended with {ended}");
            self.earlier_drift.extend(drift_in(&daemon));
        }
        self.start();
    }

    async fn freeze(&mut self) {
        if let Some(daemon) = self.first.as_ref().filter(|_| !self.frozen) {
            daemon.freeze().await;
            self.frozen = true;
        }
    }

    fn thaw(&mut self) {
        if let Some(daemon) = &self.first {
            daemon.thaw();
        }
        self.frozen = false;
    }

    fn heal(&mut self) {
        self.proxy.heal();
        self.unreachable = false;
    }

    async fn cut_sessions(&self) {
        const CUT: &str = "\
select count(pg_terminate_backend(pid))
  from pg_stat_activity
 where datname = current_database()
   and backend_type = 'client backend'
   and application_name <> $1";
        let cut = self.client().execute(CUT, &[&APPLICATION]).await;
        cut.expect("tests are superuser");
    }

    async fn switch_triggers(&mut self, on: bool) {
        let word = if on { "enable" } else { "disable" };
        for (table, trigger) in TRIGGERS {
            let statement = format!("alter table {table} {word} trigger status_indexer_{trigger}");
            let switched = self.client().batch_execute(&statement).await;
            switched.expect("the trigger is installed");
        }
        self.triggers_off = !on;
    }
}

async fn writers(database: &Database) -> Vec<Client> {
    let mut config = database.config();
    config.application_name(APPLICATION);
    let mut clients = Vec::new();
    for _ in 0..WRITERS {
        clients.push(connect(&config).await);
    }
    clients
}

fn drift_in(daemon: &Daemon) -> Vec<Value> {
    let mut log = daemon.log();
    log.retain(|line| line["message"] == "the stored status had drifted; corrected");
    log
}
