//! `demo`: everything at work on a private PostgreSQL, for a person to watch.
//!
//! Owns the course of it: a server, upstream's tables with runs in them, clients that write, the
//! migration under their traffic, the daemon in this process, a view; then quiet, and the verdict:
//! whether the column equals the definition. Promises to leave nothing behind, however it ends.
//!
//! [`postgres`] is the server, [`lives`] the clients' script, [`traffic`] and [`service`] perform
//! it, [`watch`] looks on; all of these can be used without the demo.

pub mod lives;
mod logs;
pub mod postgres;
mod report;
pub mod service;
mod site;
pub mod traffic;
mod view;
pub mod watch;

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::daemon::Addresses;
use crate::http;
use crate::metrics::Metrics;
use crate::pg::{Db, SessionMode};
use lives::Pace;
pub use logs::start as start_logs;
use report::{Ending, Report};
use site::Site;
use traffic::Traffic;
use view::{Course, FRAME, View, say};
use watch::Watch;

/// How long the demo runs where nobody can press Ctrl-C.
const UNATTENDED: Duration = Duration::from_secs(30);

/// A hundredth of the usual cutoff and a tenth of the usual interval: something happens while one
/// looks on.
const CUTOFF: Duration = Duration::from_secs(3);
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long the clients write before the indexer comes.
const BEFORE: Duration = Duration::from_secs(1);

/// The column is quiet when time alone changes nothing for so long.
const QUIET_MARGIN: Duration = Duration::from_secs(30);

/// All deadlines have passed long before; the first pass may take a while on a slow machine.
const QUIET_PATIENCE: Duration = Duration::from_secs(60);

/// `demo`
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Seconds of traffic; without it until Ctrl-C on a terminal, else 30
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration: Option<u64>,
    /// Repeats the traffic of an earlier demo, which has printed its seed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// New runs a second, on average
    #[arg(long, value_name = "RUNS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=200))]
    rate: u32,
}

impl DemoArgs {
    fn duration(&self) -> Option<Duration> {
        let unattended = (!logs::draws()).then_some(UNATTENDED);
        self.duration.map(Duration::from_secs).or(unattended)
    }
}

/// A task that is over when its handle is dropped, and how to end it in good order.
struct Actor {
    task: AbortOnDropHandle<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Actor {
    fn enter<F>(act: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let task = AbortOnDropHandle::new(tokio::spawn(act(stop.clone())));
        Self { task, stop }
    }

    async fn leave(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.task.await?
    }
}

/// Runs the demo until its duration is over or `stop`; the code to exit with: 0 if the column
/// equals the definition, 1 if it does not, 2 if it was stopped before that could be told.
///
/// # Errors
/// If something could not be started, or the clients or the daemon failed.
pub async fn run(args: DemoArgs, stop: CancellationToken) -> anyhow::Result<u8> {
    let seed = args
        .seed
        .unwrap_or_else(|| rand::random_range(0..1_000_000));
    let pace = Pace {
        runs_per_sec: args.rate.into(),
        heartbeat: HEARTBEAT,
        cutoff: CUTOFF,
    };
    say("starting a private PostgreSQL with upstream's tables ...")?;
    let prepared = stop.run_until_cancelled(Site::prepare(CUTOFF)).await;
    let Some(site) = prepared.transpose()? else {
        return stopped_early();
    };

    let traffic = Traffic::new(site.config(), seed, pace);
    let written = traffic.written();
    let clients = Actor::enter(|stop| traffic.run(stop));
    say("clients write; installing the indexer under their traffic ...")?;
    let installed = stop.run_until_cancelled(async {
        tokio::time::sleep(BEFORE).await;
        site.install().await
    });
    if installed.await.transpose()?.is_none() {
        return stopped_early();
    }

    let metrics = Metrics::new();
    let addresses = Addresses {
        metrics: http::bind(([127, 0, 0, 1], 0).into()).await?,
        api: http::bind(([127, 0, 0, 1], 0).into()).await?,
    };
    let (address, api) = (addresses.metrics.addr, addresses.api.addr);
    let daemon = site.daemon(address, api)?;
    let daemon = Actor::enter(|stop| daemon.run_on(addresses, metrics.clone(), stop));
    let watching = Db::new(&site.connector()?, SessionMode::Session, 2, Metrics::new());
    say(&site.introduction(address, api, seed, args.rate).await?)?;
    let mut stage = Stage {
        course: Course {
            seed,
            version: site.version().to_owned(),
            started: Instant::now(),
            duration: args.duration(),
            stopping: false,
        },
        watch: Watch::new(watching, metrics.clone(), written.clone()),
        clients,
        daemon,
        // The last, so that what is said before stands above it.
        view: View::new(),
    };
    stage.play(&stop).await?;
    let report = Report {
        ending: stage.end(&site).await?,
        metrics,
        written,
        seed,
    };
    site.leave().await?;
    say(&report.to_text())?;
    Ok(report.exit_code())
}

fn stopped_early() -> anyhow::Result<u8> {
    say("stopped before there was anything to see")?;
    Ok(crate::cli::EXIT_UNKNOWN)
}

/// Everything that runs while one looks on.
struct Stage {
    course: Course,
    watch: Watch,
    clients: Actor,
    daemon: Actor,
    view: View,
}

impl Stage {
    /// Until the duration is over or `stop`.
    async fn play(&mut self, stop: &CancellationToken) -> anyhow::Result<()> {
        let over = |course: &Course| {
            let duration = course.duration;
            duration.is_some_and(|duration| course.started.elapsed() >= duration)
        };
        while !stop.is_cancelled() && !over(&self.course) {
            self.look().await?;
            stop.run_until_cancelled(tokio::time::sleep(FRAME)).await;
        }
        Ok(())
    }

    /// Silences the clients, waits for quiet, takes the verdict, and stops the daemon.
    async fn end(mut self, site: &Site) -> anyhow::Result<Ending> {
        let played = self.course.started.elapsed();
        self.course.stopping = true;
        self.clients.stop.cancel();
        let silent = Instant::now();
        let mut quiet = false;
        while !quiet && silent.elapsed() < QUIET_PATIENCE {
            self.look().await?;
            tokio::time::sleep(FRAME).await;
            quiet = self.clients.task.is_finished() && self.watch.quiet(QUIET_MARGIN).await?;
        }
        let waited = silent.elapsed();
        self.look().await?;
        self.view.close();
        self.clients.leave().await.context("the clients failed")?;
        let verdict = self.watch.judge().await?;
        let unexpected = self.watch.unexpected().await?;
        let explanations = site.explain(&verdict.wrong, &unexpected).await?;
        let counts = self.watch.look().await.counts;
        self.daemon.leave().await.context("the daemon failed")?;
        Ok(Ending {
            played,
            waited,
            quiet,
            verdict,
            unexpected,
            explanations,
            counts,
            record: self.watch.record(),
        })
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        if self.daemon.task.is_finished() {
            self.view.close();
            return match (&mut self.daemon.task).await? {
                Ok(()) => bail!("the daemon has stopped"),
                Err(error) => Err(error.context("the daemon failed")),
            };
        }
        if self.clients.task.is_finished() && !self.course.stopping {
            self.view.close();
            return match (&mut self.clients.task).await? {
                Ok(()) => bail!("the clients have stopped"),
                Err(error) => Err(error.context("the clients failed")),
            };
        }
        let sight = self.watch.look().await;
        self.view.show(&self.course, sight)?;
        Ok(())
    }
}
