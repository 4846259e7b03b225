//! Where histories are played: a server, a database, a network that fails, and up to two daemons.
//!
//! Owns the faults. Promises that after [`Site::recover`] one daemon runs on a whole network and
//! server, and that what any of its daemons said of drift is known, also of those that were killed.

use std::ops::Deref;
use std::sync::Arc;

use serde_json::Value;
use status_indexer::demo::postgres::{Options, Postgres};
use tokio_postgres::Client;

use super::ledger::Ledger;
use super::step::Fault;
use crate::support::daemon::{Daemon, Launch};
use crate::support::database::{Database, connect, shared};
use crate::support::proxy::Proxy;

/// Connections that write: histories of a round that are written at the same time.
pub(crate) const WRITERS: usize = 12;

/// The name of our own sessions, which faults spare.
const OURS: &str = "history";

const TRIGGERS: [(&str, &str); 5] = [
    ("runs_v3", "insert"),
    ("runs_v3", "heartbeat"),
    ("metadata_v3", "insert"),
    ("metadata_v3", "update"),
    ("metadata_v3", "delete"),
];

/// The server: the one that tests share, or one that may be harmed.
#[derive(Clone)]
pub(crate) enum Server {
    Shared(&'static Postgres),
    Own(Arc<Postgres>),
}

impl Server {
    pub(crate) async fn shared() -> Self {
        Self::Shared(shared().await)
    }

    /// A server of our own, which loses nothing of what it said is committed when it is killed.
    pub(crate) async fn own() -> Self {
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

/// A flow, and what must be true of it.
pub(crate) struct History {
    pub(crate) flow: String,
    /// Added to the numbers of its metadata rows, which are unique in their table.
    pub(crate) base: i64,
    pub(crate) ledger: Ledger,
}

pub(crate) struct Site {
    server: Server,
    database: Database,
    proxy: Proxy,
    pub(crate) cutoff: i64,
    /// What daemons are started with beside that.
    settings: Vec<(&'static str, &'static str)>,
    /// All that was ever played here.
    pub(crate) histories: Vec<History>,
    pub(crate) writers: Vec<Client>,
    first: Option<Daemon>,
    second: Option<Daemon>,
    frozen: bool,
    unreachable: bool,
    pub(crate) triggers_off: bool,
    /// Lines about drift in the logs of daemons that are gone.
    told: Vec<Value>,
}

impl Site {
    /// A new database with a daemon that is ready, whose walk over all runs is as fast as can be.
    pub(crate) async fn open(server: &Server, cutoff: i64) -> Self {
        let settings = vec![
            ("STATUS_INDEXER_RECONCILE_INTERVAL", "1"),
            ("STATUS_INDEXER_RECONCILE_RATE", "1000000"),
        ];
        Self::open_with(server, cutoff, settings).await
    }

    pub(crate) async fn open_with(
        server: &Server,
        cutoff: i64,
        settings: Vec<(&'static str, &'static str)>,
    ) -> Self {
        let database = match server {
            Server::Shared(_) => Database::fresh().await,
            Server::Own(server) => Database::on(server).await,
        };
        let mut site = Self {
            proxy: Proxy::to(server.address()).await,
            writers: writers(&database).await,
            server: server.clone(),
            database,
            cutoff,
            settings,
            histories: Vec::new(),
            first: None,
            second: None,
            frozen: false,
            unreachable: false,
            triggers_off: false,
            told: Vec::new(),
        };
        site.start();
        site.first().ready().await;
        site
    }

    /// Takes it down; the server stays.
    pub(crate) async fn close(mut self) {
        for daemon in [self.first.take(), self.second.take()]
            .into_iter()
            .flatten()
        {
            daemon.kill9().await;
        }
        let admin = connect(&self.server.config("postgres")).await;
        let drop = format!("drop database {} with (force)", self.database.name());
        admin.batch_execute(&drop).await.expect("it is ours");
    }

    /// Forgets what was played: it is not looked at again. New flows have other names all the same.
    pub(crate) async fn forget(&mut self) {
        const FORGET: &str = "truncate runs_v3, metadata_v3, steps_v3, tasks_v3, artifact_v3";
        let forgotten = self.client().batch_execute(FORGET).await;
        forgotten.expect("nobody else is at work on it");
        for history in &mut self.histories {
            history.ledger = Ledger::default();
        }
    }

    /// A connection of ours.
    pub(crate) fn client(&self) -> &Client {
        &self.writers[0]
    }

    /// Whether it can become quiet as it stands.
    pub(crate) fn is_able(&self) -> bool {
        self.first.is_some() && !self.frozen && !self.unreachable
    }

    /// Does what a fault says, where it can befall the site as it stands.
    pub(crate) async fn befall(&mut self, fault: Fault) {
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
            Fault::Leave => self.dismiss_second().await,
            Fault::CutSessions => self.cut_sessions().await,
            Fault::CutNetwork => self.proxy.cut(),
            Fault::BlackHole => {
                self.proxy.black_hole();
                self.unreachable = true;
            }
            Fault::Heal => self.heal(),
            Fault::Crash => {
                self.server.kill9().await.expect("it can be killed");
                self.server.start_again().await.expect("it comes up again");
                self.writers = writers(&self.database).await;
            }
            Fault::Restart => {
                self.server.restart().await.expect("it stops and starts");
                self.writers = writers(&self.database).await;
            }
            Fault::Migrate => {
                let migrate = Launch::on(&self.database).args(&["migrate", "up"]);
                let output = migrate.output().await;
                assert!(output.status.success(), "{output:?}");
            }
            Fault::TriggersOff => self.switch_triggers(false).await,
            Fault::TriggersOn => self.switch_triggers(true).await,
        }
    }

    /// Undoes what faults have left.
    pub(crate) async fn recover(&mut self) {
        self.heal();
        self.thaw();
        self.start();
        if self.triggers_off {
            self.switch_triggers(true).await;
        }
    }

    /// Sends the second daemon away, if there is one.
    pub(crate) async fn dismiss_second(&mut self) {
        if let Some(daemon) = self.second.take() {
            daemon.kill9().await;
            self.told.extend(drift_in(&daemon));
        }
    }

    /// What the daemons said of drift, one line a run that they found wrong.
    pub(crate) fn drift(&self) -> Vec<Value> {
        let alive = [&self.first, &self.second].into_iter().flatten();
        let mut lines = self.told.clone();
        lines.extend(alive.flat_map(drift_in));
        lines
    }

    fn first(&self) -> &Daemon {
        self.first.as_ref().expect("it was started")
    }

    fn prepared(&self, launch: Launch) -> Launch {
        let cutoff = self.cutoff.to_string();
        let launch = launch
            .env("RUN_INACTIVE_CUTOFF_TIME", &cutoff)
            .env("STATUS_INDEXER_SWEEP_INTERVAL", "1");
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
            self.told.extend(drift_in(&daemon));
            self.frozen = false;
        }
    }

    async fn replace(&mut self) {
        // One that is frozen hears of nothing.
        self.thaw();
        if let Some(daemon) = self.first.take() {
            // Before it has begun, the signal is the system's to handle.
            daemon.address().await;
            let ended = daemon.terminate().await;
            assert!(ended.success(), "told to stop, it ended with {ended}");
            self.told.extend(drift_in(&daemon));
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
        let cut = self.client().execute(CUT, &[&OURS]).await;
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
    config.application_name(OURS);
    let mut clients = Vec::new();
    for _ in 0..WRITERS {
        clients.push(connect(&config).await);
    }
    clients
}

fn drift_in(daemon: &Daemon) -> Vec<Value> {
    let mut log = daemon.log();
    log.retain(|line| line["message"] == "the stored status was wrong");
    log
}
