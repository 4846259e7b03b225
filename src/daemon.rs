//! The daemon: starts its stages, watches over them, and stops them.
//!
//! The stages, in the order of an event's path: the `listener` receives notifications and holds the
//! leadership, the `worker` drains the queue, the `sweeper` handles deadlines, the `reconciler`
//! compares all runs with the definition; the `sampler` sets gauges and conditions. A stage that
//! ends early, by a panic or otherwise, stops the daemon with an error, because a daemon that works
//! in part would appear healthy. Nothing in the database stops a stage or the start, except
//! `--login-timeout` of refused logins.

mod clock_watch;
mod health;
mod leadership;
mod listener;
mod passes;
mod read_bounds;
mod reconciler;
mod sampler;
mod startup;
mod sweeper;
mod ui_notifier;
mod waiting;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, Reader};
use crate::config::{ApiArgs, DaemonArgs, Listen};
use crate::http;
use crate::metrics::Metrics;
use crate::migrate;
use crate::pg::{Connector, Db, SessionMode, SessionProfile};
use crate::signals::Signals;
use crate::store::Store;
use crate::version;
use health::Health;
use leadership::Leadership;
use listener::Listener;
pub(crate) use listener::{LEADER_SILENCE, NOTIFY_QUEUE_FULL};
use reconciler::Reconciler;
use sampler::Sampler;
use startup::{Started, Startup};
use sweeper::Sweeper;
use ui_notifier::{UiNotices, UiNotifier};
use worker::Worker;

/// The daemon's configuration.
#[derive(Debug)]
pub struct Daemon {
    /// Connects to the database.
    pub connector: Connector,
    /// Connects to the same database without a pooler, for LISTEN and leadership, if configured.
    pub listen: Option<Connector>,
    /// Connects to the database that the read API reads: the same one, or a replica.
    pub reader: Connector,
    /// Limits and addresses.
    pub args: DaemonArgs,
    /// Limits and addresses of the read API.
    pub api: ApiArgs,
    /// Who may use the listeners.
    pub access: ListenerAccess,
    /// The configured cutoff, seconds; the leader stores its own.
    pub cutoff_secs: i64,
    /// Options of the migration before the start; none without `--migrate`.
    pub migrate: Option<migrate::Options>,
}

/// Who may use each listener; by default everybody, over plain HTTP.
#[derive(Debug, Clone, Default)]
pub struct ListenerAccess {
    /// The metrics listener.
    pub metrics: http::Access,
    /// The read API.
    pub api: http::Access,
}

/// Addresses that are bound, and not served yet.
#[derive(Debug)]
pub struct Addresses {
    /// For operators.
    pub metrics: http::Bound,
    /// For readers, if the read API is on.
    pub api: Option<http::Bound>,
}

/// How a stage ended, with its name.
type Ended = (&'static str, anyhow::Result<()>);

impl Daemon {
    /// Runs until `stop`, then lets the work in progress finish.
    ///
    /// # Errors
    /// If it cannot listen, every login is refused for too long, a stage ends early, or the stages do
    /// not stop in time.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let addresses = Addresses {
            metrics: http::bind(self.args.metrics_listen).await?,
            api: match self.api.http_listen {
                Listen::At(addr) => Some(http::bind(addr).await?),
                Listen::Off => None,
            },
        };
        self.run_on(addresses, Metrics::new(), stop).await
    }

    /// The same, on addresses that the caller has bound and metrics that the caller reads.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn run_on(
        self,
        addresses: Addresses,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        metrics.watch_process();
        tracing::info!(
            metrics.addr = %addresses.metrics.addr,
            http.addr = addresses.api.as_ref().map(|api| tracing::field::display(api.addr)),
            version = version::VERSION,
            commit = version::COMMIT,
            "status-indexer"
        );
        let mut stages = JoinSet::new();
        self.spawn_access(&mut stages, &addresses, &metrics, &stop);
        let api = self.spawn_listeners(&mut stages, addresses, &metrics, &stop);
        let startup = Startup {
            connector: &self.connector,
            listen: self.listen.as_ref(),
            session_mode: self.args.session_mode,
            migrate: self.migrate.as_ref(),
            metrics: &metrics,
        };
        let started = tokio::select! {
            started = startup.run(&stop) => started,
            error = self.logins_refused() => return Err(error),
            early = early_end(&mut stages, &stop) => return Err(early),
        };
        let Some(started) = started else {
            return Ok(());
        };
        if let Some(api) = api {
            api.open(Reader::new(
                &self.reader,
                started.mode,
                self.api.limits(),
                &started.state.runs_table,
                metrics.clone(),
            ));
        }
        self.spawn_stages(&mut stages, &started, &metrics, &stop);
        self.supervise(stages, &stop).await
    }

    /// Follows the certificates and tokens of the listeners, if there are any.
    fn spawn_access(
        &self,
        stages: &mut JoinSet<Ended>,
        addresses: &Addresses,
        metrics: &Metrics,
        stop: &CancellationToken,
    ) {
        let ListenerAccess {
            metrics: probes,
            api,
        } = self.access.clone();
        probes.warn_if_exposed("metrics", addresses.metrics.addr);
        if let Some(bound) = &addresses.api {
            api.warn_if_exposed("api", bound.addr);
        }
        if probes.has_files() || api.has_files() {
            let listeners = [("metrics", probes), ("api", api)];
            let following = http::follow(listeners, metrics.clone(), stop.clone());
            stages.spawn(stage("access", following));
        }
    }

    /// Serves both listeners from the start; until there is a reader, the API answers 503. None if
    /// the API is off.
    fn spawn_listeners(
        &self,
        stages: &mut JoinSet<Ended>,
        addresses: Addresses,
        metrics: &Metrics,
        stop: &CancellationToken,
    ) -> Option<Arc<Api>> {
        // The pools' connections, and the one that listens.
        let database = usize::from(self.args.pool_max) + usize::from(self.api.reader_pool_max) + 1;
        let allowed = http::connections(database, self.api.max_connections.into());
        let limits = http::Limits::metrics(allowed.metrics);
        let bound = addresses.metrics.with_access(self.access.metrics.clone());
        let serving = http::serve_metrics(bound, limits, metrics.clone(), stop.clone());
        stages.spawn(stage("http", serving));
        let bound = addresses.api?.with_access(self.access.api.clone());
        let api = Api::new(
            self.api.path_prefix.clone(),
            self.api.service_version.clone(),
            self.access.api.clone(),
            metrics.clone(),
            stop.clone(),
        );
        let write_timeout = Duration::from_secs(self.api.reader_write_timeout);
        let request_timeout = Duration::from_secs(self.api.reader_request_timeout);
        let limits = http::Limits::api(allowed.api, write_timeout, request_timeout);
        let serving = http::serve(bound, api.routes(), limits, metrics.clone(), stop.clone());
        let served = Arc::clone(&api);
        stages.spawn(stage("api", async move {
            serving.await;
            served.close();
        }));
        Some(api)
    }

    fn spawn_stages(
        &self,
        stages: &mut JoinSet<Ended>,
        started: &Started,
        metrics: &Metrics,
        stop: &CancellationToken,
    ) {
        let db = Db::new(
            &self.connector,
            started.mode,
            self.args.pool_max.into(),
            SessionProfile::Worker,
            metrics.clone(),
        )
        .until(stop.clone());
        let pooled = started.mode == SessionMode::Transaction;
        metrics.transaction_pooling.set(pooled.into());
        let store = Store::new(db.clone());
        let signals = Signals::default();
        let health = Health::new(metrics.clone());
        let (leadership, leader) = Leadership::new(stop.clone());
        let ui = if self.args.notify_ui {
            let (notifier, notices) =
                UiNotifier::new(store.clone(), health.clone(), metrics.clone());
            stages.spawn(stage("ui_notifier", notifier.run(stop.clone())));
            notices
        } else {
            UiNotices::default()
        };
        let worker = Worker {
            store: store.clone(),
            leader: leader.clone(),
            signals: signals.clone(),
            ui: ui.clone(),
            health: health.clone(),
            metrics: metrics.clone(),
        };
        let sweeper = Sweeper {
            store: store.clone(),
            leader: leader.clone(),
            signals: signals.clone(),
            ui: ui.clone(),
            cutoff: Duration::from_secs(self.cutoff_secs.unsigned_abs()),
            interval: Duration::from_secs(self.args.sweep_interval),
            health: health.clone(),
            metrics: metrics.clone(),
        };
        let reconciler = Reconciler {
            store: store.clone(),
            leader,
            signals: signals.clone(),
            ui,
            cutoff_secs: self.cutoff_secs,
            rate: self.args.reconcile_rate.into(),
            interval: Duration::from_secs(self.args.reconcile_interval),
            upstream_notify_triggers: started.upstream_notify_triggers,
            health: health.clone(),
            metrics: metrics.clone(),
        };
        let listener = Listener {
            connector: self.connector.clone(),
            direct: self.listen.clone(),
            db,
            leadership,
            signals: signals.clone(),
            health: health.clone(),
            metrics: metrics.clone(),
        };
        let sampler = Sampler {
            store,
            signals,
            health,
            max_event_age: Duration::from_secs(self.args.max_event_age),
            metrics: metrics.clone(),
        };
        // First the stages that wait for a term, then the listener, which begins it.
        stages.spawn(stage("worker", worker.run(stop.clone())));
        stages.spawn(stage("sweeper", sweeper.run(stop.clone())));
        stages.spawn(stage("reconciler", reconciler.run(stop.clone())));
        stages.spawn(stage("listener", listener.run(stop.clone())));
        stages.spawn(stage("sampler", sampler.run(stop.clone())));
    }

    /// Resolves after `--login-timeout` of nothing but refused logins; never if that is 0. Logins to a
    /// replica do not count: only reads need it.
    async fn logins_refused(&self) -> anyhow::Error {
        let limit = Duration::from_secs(self.args.login_timeout);
        if limit.is_zero() {
            return std::future::pending().await;
        }
        let reason = self.connector.logins().refused_for(limit).await;
        anyhow::anyhow!(reason).context(format!(
            "the server has refused every login for {} s: check the role, its password and the \
             server's pg_hba.conf",
            limit.as_secs()
        ))
    }

    async fn supervise(
        &self,
        mut stages: JoinSet<Ended>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        tokio::select! {
            () = stop.cancelled() => {}
            early = early_end(&mut stages, stop) => return Err(early),
            error = self.logins_refused() => return Err(error),
        }
        let limit = Duration::from_secs(self.args.shutdown_timeout);
        let wind_down = async {
            while let Some(ended) = stages.join_next().await {
                let (name, outcome) = ended.context("a stage panicked")?;
                outcome.with_context(|| format!("stage {name} failed"))?;
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(limit, wind_down).await {
            Ok(outcome) => outcome?,
            Err(_) => bail!(
                "not all stages stopped within {} s; the database completes or rolls back what was in progress",
                limit.as_secs()
            ),
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Runs a stage that cannot fail, and returns its outcome in the common form.
async fn stage(name: &'static str, run: impl Future<Output = ()>) -> Ended {
    run.await;
    (name, Ok(()))
}

/// Resolves when a stage ends although no shutdown was requested.
async fn early_end(stages: &mut JoinSet<Ended>, stop: &CancellationToken) -> anyhow::Error {
    let ended = stages.join_next().await;
    if stop.is_cancelled() {
        std::future::pending().await
    }
    match ended {
        Some(Ok((name, Err(error)))) => error.context(format!("stage {name} failed")),
        Some(Ok((name, Ok(())))) => anyhow::anyhow!("stage {name} ended early"),
        Some(Err(error)) => anyhow::Error::new(error).context("a stage panicked"),
        None => anyhow::anyhow!("no stage is left"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    async fn end_of(mut stages: JoinSet<Ended>, stop: &CancellationToken) -> String {
        chain(early_end(&mut stages, stop).await.as_ref())
    }

    #[tokio::test]
    async fn a_stage_that_ends_by_itself_is_reported_with_its_reason() {
        let stop = CancellationToken::new();
        let mut stages = JoinSet::new();
        stages.spawn(async { ("http", Err(anyhow::anyhow!("no more descriptors"))) });
        let text = end_of(stages, &stop).await;
        assert_eq!(text, "stage http failed: no more descriptors");

        let mut stages = JoinSet::new();
        stages.spawn(stage("worker", async {}));
        assert_eq!(end_of(stages, &stop).await, "stage worker ended early");

        let mut stages = JoinSet::new();
        stages.spawn(stage("sweeper", async { panic!("a bug") }));
        let text = end_of(stages, &stop).await;
        assert!(
            text.contains("a stage panicked") && text.contains("a bug"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_stage_that_ends_after_stop_is_not_reported() {
        let stop = CancellationToken::new();
        stop.cancel();
        let mut stages = JoinSet::new();
        stages.spawn(stage("worker", async {}));
        let early = early_end(&mut stages, &stop);
        let waited = tokio::time::timeout(Duration::from_millis(50), early).await;
        assert!(waited.is_err());
    }
}
