//! The start of the daemon: waits for the database, migrates if configured, and checks the state.
//!
//! Retries as long as the database is unavailable, and fails at once if only an operator can remove
//! the cause. Called once by the daemon.

use std::time::Duration;

use anyhow::bail;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, chain};
use crate::metrics::Metrics;
use crate::migrate;
use crate::pg::{Connector, Db, SessionMode, SessionProfile, check_listen, detect_mode};
use crate::store::{DEFINITION_VERSION, State, Store};
use crate::wait::until_available;

/// How long an attempt to start may continue after shutdown was requested.
const START_GRACE: Duration = Duration::from_secs(2);

/// The options of the start.
#[derive(Debug)]
pub(super) struct Startup<'a> {
    pub(super) connector: &'a Connector,
    /// For LISTEN, if configured.
    pub(super) listen: Option<&'a Connector>,
    pub(super) session_mode: SessionMode,
    pub(super) migrate: Option<&'a migrate::Options>,
}

/// What is known once the database has answered.
pub(super) struct Started {
    pub(super) mode: SessionMode,
    pub(super) state: State,
    pub(super) upstream_notify_triggers: bool,
}

impl Startup<'_> {
    /// Retries until the database answers; none if stopped before.
    ///
    /// # Errors
    /// If only an operator can remove the cause.
    pub(super) async fn run(&self, stop: &CancellationToken) -> anyhow::Result<Option<Started>> {
        let attempt = || self.attempt(stop);
        tokio::select! {
            started = until_available(attempt, None, stop) => started,
            () = grace_after(stop) => Ok(None),
        }
    }

    async fn attempt(&self, stop: &CancellationToken) -> anyhow::Result<Started> {
        if let Some(options) = self.migrate {
            migrate::up(self.connector, options, stop).await?;
        }
        let mode = match self.session_mode {
            SessionMode::Auto => detect_mode(self.connector).await?,
            mode => mode,
        };
        if mode == SessionMode::Transaction && self.listen.is_none() {
            tracing::warn!(
                "connected through a transaction pooler: LISTEN and leadership are unavailable; every \
                 daemon polls the queue and works; --listen-url avoids that"
            );
        }
        let db = Db::new(
            self.connector,
            mode,
            1,
            SessionProfile::Worker,
            Metrics::new(),
        );
        let state = check_state(&db).await?;
        if let Some(listen) = self.listen {
            check_direct(listen, &db).await?;
        }
        let client = self
            .connector
            .connect(SessionProfile::ReadOnlyTransaction)
            .await?;
        let upstream_notify_triggers =
            migrate::upstream_notify_triggers(&client, &state.runs_table).await?;
        if upstream_notify_triggers {
            tracing::warn!(
                "upstream's notify_ui trigger sends a notification for each status written; scans \
                 limit their writes"
            );
        }
        Ok(Started {
            mode,
            state,
            upstream_notify_triggers,
        })
    }
}

async fn check_state(db: &Db) -> anyhow::Result<State> {
    let state = Store::new(db.clone()).load_state().await?;
    if state.definition_version != DEFINITION_VERSION {
        bail!(
            "the database has version {} of the definition, this binary supports \
             {DEFINITION_VERSION}: use the binary that migrated it, or run `migrate up`",
            state.definition_version
        );
    }
    Ok(state)
}

/// Refuses a direct connection that leads elsewhere. One that cannot be had does not matter: the daemon
/// polls until it can.
async fn check_direct(listen: &Connector, db: &Db) -> anyhow::Result<()> {
    match check_listen(listen, db).await {
        Ok(()) => tracing::info!("LISTEN and the leader's lock use the connection of --listen-url"),
        Err(error @ Error::Misdirected(_)) => return Err(error.into()),
        Err(error) => tracing::warn!(
            error = chain(&error),
            "cannot check the connection of --listen-url: polling until it works"
        ),
    }
    Ok(())
}

/// Resolves [`START_GRACE`] after shutdown is requested, so that a migration can finish but an
/// unresponsive server cannot block the exit.
async fn grace_after(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(START_GRACE).await;
}
