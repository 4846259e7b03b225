//! The start of the daemon: waits for the database, migrates if configured, and checks the state.
//!
//! Promises that nothing in the database ends the daemon: it waits, reports the reason and retries,
//! whether the cause passes by itself or an operator must remove it. A process that exits cannot be
//! scraped, and as a sidecar it would make its pod unready. Called once by the daemon.

use std::time::Duration;

use anyhow::bail;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::waiting::Waiting;
use crate::error::{Error, chain};
use crate::metrics::Metrics;
use crate::migrate;
use crate::pg::{Connector, Db, SessionMode, SessionProfile, check_listen, detect_mode};
use crate::store::{DEFINITION_VERSION, State, Store};

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
    /// Receives what happens before the stages run, so that an alert sees it too.
    pub(super) metrics: &'a Metrics,
}

/// What is known once the database has answered.
pub(super) struct Started {
    pub(super) mode: SessionMode,
    pub(super) state: State,
    pub(super) upstream_notify_triggers: bool,
}

impl Started {
    /// Logs what makes the daemon slower than it could be. Once, not at each attempt.
    fn warn(&self, listens_directly: bool) {
        if self.mode == SessionMode::Transaction && !listens_directly {
            tracing::warn!(
                "connected through a transaction pooler: LISTEN and leadership are unavailable; every \
                 daemon polls the queue and works; --listen-url avoids that"
            );
        }
        if self.upstream_notify_triggers {
            tracing::warn!(
                "upstream's notify_ui trigger sends a notification for each status written; scans \
                 limit their writes"
            );
        }
    }
}

impl Startup<'_> {
    /// Retries until the daemon can start; none if stopped before.
    pub(super) async fn run(&self, stop: &CancellationToken) -> Option<Started> {
        tokio::select! {
            started = self.until_started(stop) => started,
            () = grace_after(stop) => None,
        }
    }

    async fn until_started(&self, stop: &CancellationToken) -> Option<Started> {
        let mut waiting = Waiting::new(self.metrics.clone());
        loop {
            let error = match self.attempt(&waiting, stop).await {
                Ok(started) => {
                    waiting.end();
                    started.warn(self.listen.is_some());
                    return Some(started);
                }
                Err(error) => error,
            };
            if stop.is_cancelled() {
                return None;
            }
            self.count(&error);
            let wait = waiting.failed(error);
            stop.run_until_cancelled(sleep(wait)).await?;
        }
    }

    async fn attempt(
        &self,
        waiting: &Waiting,
        stop: &CancellationToken,
    ) -> anyhow::Result<Started> {
        if let Some(options) = self.migrate {
            // A migration takes minutes on a large table, while the database answers.
            drop(self.connector.connect_bare().await?);
            waiting.migrating();
            match migrate::up(self.connector, options, stop).await {
                // After a rollback: a daemon works on the database of the next version.
                Err(error) if error.downcast_ref::<migrate::NewerDatabase>().is_some() => {
                    tracing::warn!(error = chain(error.as_ref()), "not migrated");
                }
                outcome => outcome?,
            }
        }
        let mode = match self.session_mode {
            SessionMode::Auto => detect_mode(self.connector).await?,
            mode => mode,
        };
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
        Ok(Started {
            mode,
            state,
            upstream_notify_triggers,
        })
    }

    fn count(&self, error: &anyhow::Error) {
        if let Some(error) = error
            .chain()
            .find_map(|cause| cause.downcast_ref::<Error>())
        {
            self.metrics.count_db_error(error);
        }
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
    sleep(START_GRACE).await;
}
