//! Wires the stages, watches over them, and winds them down.
//!
//! A stage that ends early, by a panic or otherwise, stops the daemon with an error: a daemon that
//! half works looks healthy and is not. The database going away stops nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, Reader};
use crate::backoff::Backoff;
use crate::config::{ApiArgs, DaemonArgs};
use crate::error::{Error, Remedy, chain, remedy_of};
use crate::http;
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::migrate;
use crate::pg::{Connector, Db, Purpose, SessionMode, detect_mode};
use crate::reconciler::Reconciler;
use crate::signals::{Alarm, Lead, LeadWatch, Wake};
use crate::store::queue;
use crate::store::state::{self, DEFINITION_VERSION, State};
use crate::sweeper::Sweeper;
use crate::walk::Listeners;
use crate::worker::Worker;

/// How often what a scrape shows, but no stage learns by itself, is asked for.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(15);

/// The same, until the column is believable.
const SAMPLE_INTERVAL_AT_FIRST: Duration = Duration::from_secs(1);

/// How long an attempt to start may go on after the signal to stop.
const START_GRACE: Duration = Duration::from_secs(2);

/// What the daemon runs with.
#[derive(Debug)]
pub struct Daemon {
    /// The way to the database.
    pub connector: Connector,
    /// The way to where the API reads: the same database, or a replica of it.
    pub reader: Connector,
    /// Limits and addresses.
    pub args: DaemonArgs,
    /// The same, of the read API.
    pub api: ApiArgs,
    /// The cutoff that it puts in force when it leads, seconds.
    pub cutoff_secs: i64,
    /// Migrate first.
    pub migrate: Option<migrate::Options>,
}

/// Addresses that are bound, and not served yet.
#[derive(Debug)]
pub struct Addresses {
    /// For operators.
    pub metrics: http::Bound,
    /// For readers.
    pub api: http::Bound,
}

/// How a stage ended, by its name.
type Ended = (&'static str, anyhow::Result<()>);

/// What is known once the database has answered.
struct Start {
    mode: SessionMode,
    state: State,
    notifying_neighbour: bool,
}

impl Daemon {
    /// Runs until `stop`, then lets what is under way finish.
    ///
    /// # Errors
    /// If it cannot start, a stage ends early, or the stages do not stop within the deadline.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let addresses = Addresses {
            metrics: http::bind(self.args.metrics_listen).await?,
            api: http::bind(self.api.http_listen).await?,
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
            http.addr = %addresses.api.addr,
            version = env!("CARGO_PKG_VERSION"),
            "status-indexer"
        );
        let mut stages = JoinSet::new();
        {
            let (metrics, stop) = (metrics.clone(), stop.clone());
            let bound = addresses.metrics;
            stages.spawn(async move { ("http", http::serve_metrics(bound, metrics, stop).await) });
        }
        let api = self.spawn_api(&mut stages, addresses.api, &metrics, &stop);
        let started = tokio::select! {
            started = self.start(&stop) => started?,
            early = early_end(&mut stages, &stop) => return Err(early),
        };
        let Some(start) = started else {
            return Ok(());
        };
        api.open(Reader::new(
            &self.reader,
            start.mode,
            self.api.limits(),
            &start.state.runs_table,
            metrics.clone(),
        ));
        self.spawn_stages(&mut stages, &start, &metrics, &stop);
        self.supervise(stages, &stop).await
    }

    /// Serves the API from the start: until there is a reader, what it says is that there is none.
    fn spawn_api(
        &self,
        stages: &mut JoinSet<Ended>,
        bound: http::Bound,
        metrics: &Metrics,
        stop: &CancellationToken,
    ) -> Arc<Api> {
        let api = Api::new(
            self.api.path_prefix.clone(),
            self.api.service_version.clone(),
            metrics.clone(),
            stop.clone(),
        );
        let (served, stop) = (Arc::clone(&api), stop.clone());
        stages.spawn(async move {
            let outcome = http::serve(bound, served.routes(), stop).await;
            served.close();
            ("api", outcome)
        });
        api
    }

    /// Waits for the database, migrates if told to, and learns what it must know. None when
    /// stopped meanwhile.
    async fn start(&self, stop: &CancellationToken) -> anyhow::Result<Option<Start>> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            let attempt = tokio::select! {
                attempt = self.try_start(stop) => attempt,
                () = patience_with(stop) => return Ok(None),
            };
            let error = match attempt {
                Ok(start) => return Ok(Some(start)),
                Err(error) => error,
            };
            if stop.is_cancelled() {
                return Ok(None);
            }
            if !away(&error) {
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

    async fn try_start(&self, stop: &CancellationToken) -> anyhow::Result<Start> {
        if let Some(options) = &self.migrate {
            migrate::up(&self.connector, options, stop).await?;
        }
        let mode = match self.args.session_mode {
            SessionMode::Auto => detect_mode(&self.connector).await?,
            mode => mode,
        };
        if mode == SessionMode::Transaction {
            tracing::warn!(
                "connections are not sessions (a transaction pooler): no LISTEN and no lead; the \
                 queue is polled, and every daemon works"
            );
        }
        let db = Db::new(&self.connector, mode, 1, Metrics::new());
        let state = state::load(&db).await;
        if matches!(&state, Err(error) if error.remedy() == Remedy::Migrate) {
            bail!(
                "the database has no status indexer in it, or another version's: run `status-indexer migrate up` as the tables' owner, or start with --migrate"
            );
        }
        if matches!(&state, Err(error) if error.remedy() == Remedy::Grant) {
            return Err(state.err().context("has an error")?).context(
                "the role lacks privileges: run `status-indexer migrate up --grant-to ROLE` as the tables' owner",
            );
        }
        let state = state?;
        if state.definition_version != DEFINITION_VERSION {
            bail!(
                "the database has version {} of the definition, this binary knows {DEFINITION_VERSION}: use the binary that migrated it, or migrate up",
                state.definition_version
            );
        }
        let client = self.connector.connect(Purpose::Look).await?;
        let notifying_neighbour = migrate::notifying_neighbour(&client, &state.runs_table).await?;
        if notifying_neighbour {
            tracing::warn!(
                "upstream's notify_ui trigger sends a message for each status written; passes over \
                 all runs keep to a rate"
            );
        }
        Ok(Start {
            mode,
            state,
            notifying_neighbour,
        })
    }

    fn spawn_stages(
        &self,
        stages: &mut JoinSet<Ended>,
        start: &Start,
        metrics: &Metrics,
        stop: &CancellationToken,
    ) {
        let db = Db::new(
            &self.connector,
            start.mode,
            self.args.pool_max.into(),
            metrics.clone(),
        )
        .until(stop.clone());
        metrics.up.set(1);
        metrics.believable.set(start.state.believable.into());
        let (lead, lead_watch) = watch::channel(Lead::default());
        let lead_watch = LeadWatch(lead_watch);
        let (wake, alarm) = (Wake::default(), Alarm::default());
        let worker = Worker {
            db: db.clone(),
            lead: lead_watch.clone(),
            wake: wake.clone(),
            alarm: alarm.clone(),
            metrics: metrics.clone(),
        };
        let sweeper = Sweeper {
            db: db.clone(),
            lead: lead_watch.clone(),
            alarm: alarm.clone(),
            wake: wake.clone(),
            cutoff: Duration::from_secs(self.cutoff_secs.unsigned_abs()),
            interval: Duration::from_secs(self.args.sweep_interval),
            metrics: metrics.clone(),
        };
        let reconciler = Reconciler {
            db: db.clone(),
            lead: lead_watch,
            listeners: Listeners {
                wake: wake.clone(),
                alarm: alarm.clone(),
            },
            cutoff_secs: self.cutoff_secs,
            rate: self.args.reconcile_rate.into(),
            interval: Duration::from_secs(self.args.reconcile_interval),
            notifying_neighbour: start.notifying_neighbour,
            metrics: metrics.clone(),
        };
        let listener = Listener {
            connector: self.connector.clone(),
            db: db.clone(),
            lead,
            wake,
            alarm,
            metrics: metrics.clone(),
        };
        let token = || stop.clone();
        // Those that wait for the lead first, then the one that wins it.
        let (a, b, c, d, e) = (token(), token(), token(), token(), token());
        stages.spawn(stage("worker", worker.run(a)));
        stages.spawn(stage("sweeper", sweeper.run(b)));
        stages.spawn(stage("reconciler", reconciler.run(c)));
        stages.spawn(stage("listener", listener.run(d)));
        let metrics = metrics.clone();
        stages.spawn(stage("sampler", sample(db, metrics, e)));
    }

    async fn supervise(
        &self,
        mut stages: JoinSet<Ended>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        tokio::select! {
            () = stop.cancelled() => {}
            early = early_end(&mut stages, stop) => return Err(early),
        }
        let limit = Duration::from_secs(self.args.shutdown_timeout);
        let wind_down = async {
            while let Some(ended) = stages.join_next().await {
                let (name, outcome) = ended.context("a stage panicked")?;
                outcome.with_context(|| format!("the {name} failed"))?;
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(limit, wind_down).await {
            Ok(outcome) => outcome?,
            Err(_) => bail!(
                "not everything stopped within {} s; what was under way is the database's to finish or undo",
                limit.as_secs()
            ),
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Gives a stage that cannot fail the form of one that can.
async fn stage(name: &'static str, run: impl Future<Output = ()>) -> Ended {
    run.await;
    (name, Ok(()))
}

/// Returns when a stage ends that nobody told to.
async fn early_end(stages: &mut JoinSet<Ended>, stop: &CancellationToken) -> anyhow::Error {
    let ended = stages.join_next().await;
    if stop.is_cancelled() {
        std::future::pending().await
    }
    ended_early(ended)
}

fn ended_early(ended: Option<Result<Ended, tokio::task::JoinError>>) -> anyhow::Error {
    match ended {
        Some(Ok((name, Err(error)))) => error.context(format!("the {name} failed")),
        Some(Ok((name, Ok(())))) => anyhow::anyhow!("the {name} ended early"),
        Some(Err(error)) => anyhow::Error::new(error).context("a stage panicked"),
        None => anyhow::anyhow!("no stage is left"),
    }
}

/// Whether it is the database that is away, rather than something an operator must change.
fn away(error: &anyhow::Error) -> bool {
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

/// Returns a while after `stop`: a migration lets go by itself, a silent server never does.
async fn patience_with(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(START_GRACE).await;
}

/// Fills the gauges that no stage fills by its work.
async fn sample(db: Db, metrics: Metrics, stop: CancellationToken) {
    loop {
        db.observe_pool();
        // Errors are counted where calls are made, and told by the stages.
        if let Ok((depth, oldest_secs)) = queue::waiting(&db).await {
            metrics.queue_depth.set(depth);
            metrics.queue_oldest_age_seconds.set(oldest_secs);
        }
        if let Ok(state) = state::load(&db).await {
            metrics.believable.set(state.believable.into());
        }
        let wait = if metrics.believable.get() == 1 {
            SAMPLE_INTERVAL
        } else {
            SAMPLE_INTERVAL_AT_FIRST
        };
        if stop
            .run_until_cancelled(tokio::time::sleep(wait))
            .await
            .is_none()
        {
            db.close();
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn end_of(mut stages: JoinSet<Ended>, stop: &CancellationToken) -> String {
        chain(early_end(&mut stages, stop).await.as_ref())
    }

    #[tokio::test]
    async fn a_stage_that_ends_by_itself_is_reported_with_its_reason() {
        let stop = CancellationToken::new();
        let mut stages = JoinSet::new();
        stages.spawn(async { ("http", Err(anyhow::anyhow!("no more descriptors"))) });
        let text = end_of(stages, &stop).await;
        assert_eq!(text, "the http failed: no more descriptors");

        let mut stages = JoinSet::new();
        stages.spawn(stage("worker", async {}));
        assert_eq!(end_of(stages, &stop).await, "the worker ended early");

        let mut stages = JoinSet::new();
        stages.spawn(stage("sweeper", async { panic!("a bug") }));
        let text = end_of(stages, &stop).await;
        assert!(
            text.contains("a stage panicked") && text.contains("a bug"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_stage_that_ends_because_it_was_told_to_is_no_news() {
        let stop = CancellationToken::new();
        stop.cancel();
        let mut stages = JoinSet::new();
        stages.spawn(stage("worker", async {}));
        let early = early_end(&mut stages, &stop);
        let waited = tokio::time::timeout(Duration::from_millis(50), early).await;
        assert!(waited.is_err());
    }
}
