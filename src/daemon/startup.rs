//! The start of the daemon: waits for the database, migrates if asked to, and checks what it finds.
//!
//! Retries as long as the database is unavailable, and fails at once for what only an operator can
//! change. Called once by the daemon.

use std::time::Duration;

use anyhow::bail;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::error::{Error, Remedy, chain, remedy_of};
use crate::metrics::Metrics;
use crate::migrate;
use crate::pg::{Connector, Db, SessionMode, SessionProfile, detect_mode};
use crate::store::{DEFINITION_VERSION, State, Store};

/// How long an attempt to start may continue after the signal to stop.
const START_GRACE: Duration = Duration::from_secs(2);

/// How to start.
#[derive(Debug)]
pub(super) struct Startup<'a> {
    pub(super) connector: &'a Connector,
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
    /// For what only an operator can change.
    pub(super) async fn run(&self, stop: &CancellationToken) -> anyhow::Result<Option<Started>> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            let attempt = tokio::select! {
                attempt = self.attempt(stop) => attempt,
                () = grace_after(stop) => return Ok(None),
            };
            let error = match attempt {
                Ok(started) => return Ok(Some(started)),
                Err(error) => error,
            };
            if stop.is_cancelled() {
                return Ok(None);
            }
            if !is_unavailable(&error) {
                return Err(error);
            }
            let wait = backoff.next_wait();
            tracing::warn!(
                error = chain(error.as_ref()),
                retry_in_secs = wait.as_secs_f64(),
                "waiting for the database"
            );
            if stop
                .run_until_cancelled(tokio::time::sleep(wait))
                .await
                .is_none()
            {
                return Ok(None);
            }
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
        if mode == SessionMode::Transaction {
            tracing::warn!(
                "connected through a transaction pooler: LISTEN and leadership are unavailable; every \
                 daemon polls the queue and works"
            );
        }
        let state = self.check_state(mode).await?;
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

    async fn check_state(&self, mode: SessionMode) -> anyhow::Result<State> {
        let db = Db::new(
            self.connector,
            mode,
            1,
            SessionProfile::Worker,
            Metrics::new(),
        );
        let state = match Store::new(db).load_state().await {
            Ok(state) => state,
            Err(error) => {
                let hint = error.remedy().hint();
                let error = anyhow::Error::new(error);
                return Err(match hint {
                    Some(hint) => error.context(hint),
                    None => error,
                });
            }
        };
        if state.definition_version != DEFINITION_VERSION {
            bail!(
                "the database has version {} of the definition, this binary supports \
                 {DEFINITION_VERSION}: use the binary that migrated it, or run `migrate up`",
                state.definition_version
            );
        }
        Ok(state)
    }
}

/// Whether the database is unavailable, rather than something that an operator must change.
fn is_unavailable(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        if let Some(error) = cause.downcast_ref::<Error>() {
            return error.remedy() == Remedy::Retry;
        }
        cause
            .downcast_ref::<tokio_postgres::Error>()
            .is_some_and(|error| match error.code() {
                Some(code) => remedy_of(code) == Remedy::Retry,
                None => error.is_closed(),
            })
    })
}

/// Resolves [`START_GRACE`] after shutdown is requested, so that a migration can finish but an
/// unresponsive server cannot block the exit.
async fn grace_after(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(START_GRACE).await;
}
