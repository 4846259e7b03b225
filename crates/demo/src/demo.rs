//! The sequence of the demo, from an empty server to the report.
//!
//! Owns what runs when: a server, upstream's tables with runs in them, clients that write, the
//! migration under their traffic, the daemon in this process, a view; then it waits until nothing
//! is pending and compares the column with the definition. Promises to leave nothing behind,
//! however it ends. Called by `main`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use status_indexer::daemon::Addresses;
use status_indexer::exit::Exit;
use status_indexer::http;
use status_indexer::metrics::Metrics;
use status_indexer::pg::{Db, SessionMode, SessionProfile};
use status_indexer::store::Store;
use testkit::clients::scenario::ClientRates;
use testkit::clients::traffic::Traffic;

use crate::logs;
use crate::playground::Playground;
use crate::report::{Ending, Report};
use crate::view::{FRAME, Progress, View, print};
use crate::watch::Watch;

/// How long the demo runs without a terminal, where nobody can press Ctrl-C.
const UNATTENDED: Duration = Duration::from_secs(30);

/// A hundredth of the usual cutoff and a tenth of the usual interval, so that a viewer sees runs
/// fail and recover.
const CUTOFF: Duration = Duration::from_secs(3);
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long the clients write before the indexer is installed.
const BEFORE: Duration = Duration::from_secs(1);

/// Nothing is pending if no deadline falls due within this time.
const SETTLED_MARGIN: Duration = Duration::from_secs(30);

/// How long settling may take: all deadlines pass much earlier, but the backfill may be slow on a
/// slow machine.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The options of the demo.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Seconds of traffic [default: until Ctrl-C on a terminal, otherwise 30]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration: Option<u64>,
    /// Seed of an earlier demo, to repeat its traffic
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// New runs per second, on average
    #[arg(long, value_name = "RUNS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=200))]
    rate: u32,
}

impl DemoArgs {
    fn duration(&self) -> Option<Duration> {
        let unattended = (!logs::is_terminal()).then_some(UNATTENDED);
        self.duration.map(Duration::from_secs).or(unattended)
    }
}

/// A task that is aborted when dropped, and the token that stops it gracefully.
struct Task {
    handle: AbortOnDropHandle<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Task {
    fn start<F>(run: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let handle = AbortOnDropHandle::new(tokio::spawn(run(stop.clone())));
        Self { handle, stop }
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.handle.await?
    }
}

/// Runs the demo until its duration is over or `stop`; returns the exit code: 0 if the column
/// equals the definition, 1 if it does not, 2 if it was stopped before that was known.
///
/// # Errors
/// If something could not be started, or the clients or the daemon failed.
pub(crate) async fn run(args: DemoArgs, stop: CancellationToken) -> anyhow::Result<Exit> {
    let seed = args
        .seed
        .unwrap_or_else(|| rand::random_range(0..1_000_000));
    let rates = ClientRates {
        runs_per_sec: args.rate.into(),
        heartbeat: HEARTBEAT,
        cutoff: CUTOFF,
    };
    print("starting a private PostgreSQL with upstream's tables ...")?;
    let prepared = stop.run_until_cancelled(Playground::prepare(CUTOFF)).await;
    let Some(playground) = prepared.transpose()? else {
        return stopped_early();
    };

    let traffic = Traffic::new(playground.config(), seed, rates);
    let written = traffic.written();
    let clients = Task::start(|stop| traffic.run(stop));
    print("clients write; installing the indexer under their traffic ...")?;
    let installed = stop.run_until_cancelled(async {
        tokio::time::sleep(BEFORE).await;
        playground.install().await
    });
    if installed.await.transpose()?.is_none() {
        return stopped_early();
    }

    let metrics = Metrics::new();
    let metrics_bound = http::bind(([127, 0, 0, 1], 0).into()).await?;
    let api_bound = http::bind(([127, 0, 0, 1], 0).into()).await?;
    let (address, api) = (metrics_bound.addr, api_bound.addr);
    let addresses = Addresses {
        metrics: metrics_bound,
        api: Some(api_bound),
    };
    let daemon = playground.daemon(address, api)?;
    let daemon = Task::start(|stop| daemon.run_on(addresses, metrics.clone(), stop));
    let watching = Store::new(Db::new(
        &playground.connector()?,
        SessionMode::Session,
        2,
        SessionProfile::Reader,
        Metrics::new(),
    ));
    print(
        &playground
            .introduction(address, api, seed, args.rate)
            .await?,
    )?;
    let mut demo = Demo {
        progress: Progress {
            seed,
            version: playground.version().to_owned(),
            started: Instant::now(),
            duration: args.duration(),
            stopping: false,
        },
        watch: Watch::new(watching, metrics.clone(), written.clone()),
        clients,
        daemon,
        // The last, so that everything printed before stays above it.
        view: View::new(),
    };
    demo.run_until(&stop).await?;
    let report = Report {
        ending: demo.finish(&playground).await?,
        metrics,
        written,
        seed,
    };
    playground.stop().await?;
    print(&report.to_text())?;
    Ok(report.exit())
}

fn stopped_early() -> anyhow::Result<Exit> {
    print("stopped before there was anything to see")?;
    Ok(Exit::Unknown)
}

/// Everything that runs while the view is shown.
struct Demo {
    progress: Progress,
    watch: Watch,
    clients: Task,
    daemon: Task,
    view: View,
}

impl Demo {
    /// Shows the view until the duration is over or `stop`.
    async fn run_until(&mut self, stop: &CancellationToken) -> anyhow::Result<()> {
        let over = |progress: &Progress| {
            let duration = progress.duration;
            duration.is_some_and(|duration| progress.started.elapsed() >= duration)
        };
        while !stop.is_cancelled() && !over(&self.progress) {
            self.refresh().await?;
            stop.run_until_cancelled(tokio::time::sleep(FRAME)).await;
        }
        Ok(())
    }

    /// Stops the clients, waits until nothing is pending, compares, and stops the daemon.
    async fn finish(mut self, playground: &Playground) -> anyhow::Result<Ending> {
        let elapsed = self.progress.started.elapsed();
        self.progress.stopping = true;
        self.clients.stop.cancel();
        let stopped = Instant::now();
        let mut settled = false;
        while !settled && stopped.elapsed() < SETTLE_TIMEOUT {
            self.refresh().await?;
            tokio::time::sleep(FRAME).await;
            settled =
                self.clients.handle.is_finished() && self.watch.settled(SETTLED_MARGIN).await?;
        }
        let waited = stopped.elapsed();
        self.refresh().await?;
        self.view.close();
        self.clients.stop().await.context("the clients failed")?;
        let comparison = self.watch.compare_all().await?;
        let unexpected = self.watch.unexpected().await?;
        let explanations = playground.explain(&comparison.drift, &unexpected).await?;
        let counts = self.watch.snapshot().await.counts;
        self.daemon.stop().await.context("the daemon failed")?;
        Ok(Ending {
            elapsed,
            waited,
            settled,
            comparison,
            unexpected,
            explanations,
            counts,
            record: self.watch.record(),
        })
    }

    async fn refresh(&mut self) -> anyhow::Result<()> {
        if self.daemon.handle.is_finished() {
            self.view.close();
            return match (&mut self.daemon.handle).await? {
                Ok(()) => bail!("the daemon has stopped"),
                Err(error) => Err(error.context("the daemon failed")),
            };
        }
        if self.clients.handle.is_finished() && !self.progress.stopping {
            self.view.close();
            return match (&mut self.clients.handle).await? {
                Ok(()) => bail!("the clients have stopped"),
                Err(error) => Err(error.context("the clients failed")),
            };
        }
        let snapshot = self.watch.snapshot().await;
        self.view.show(&self.progress, snapshot)?;
        Ok(())
    }
}
