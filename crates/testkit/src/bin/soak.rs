//! `make soak`: random histories with faults of every kind, until the time is over or one fails; with
//! `--reads`, readers that compare what they see with the definition.
//!
//! Owns the time limit, the progress lines and the exit code; the histories are those of the tests.
//! Promises that a failure ends it with exit code 1 and prints the fewest steps that fail, and the
//! seed with which that round comes first.

use std::process::{ExitCode, exit};
use std::time::{Duration, Instant};

use clap::Parser;

use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::history::campaign::Campaign;
use testkit::history::generate::Faults;
use testkit::history::run::Totals;
use testkit::read_storm::{self, CUTOFF_SECS};
use testkit::seed::Seed;

/// The time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// Runs random histories with faults in between, on a private PostgreSQL, until one fails.
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Cli {
    /// How long to run; until Ctrl-C if not given
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// The first round's seed; each further round has the next one. At random if not given
    #[arg(long, env = testkit::seed::VARIABLE)]
    seed: Option<u64>,
    /// Compare what readers of the view see with the definition, while writers write and daemons are
    /// killed and frozen
    #[arg(long)]
    reads: bool,
}

/// The work so far.
struct Progress {
    started: Instant,
    printed: Instant,
    totals: Totals,
}

impl Progress {
    fn print(&mut self, wrong: usize) {
        self.printed = Instant::now();
        println!(
            "{:>6} s  {} rounds, {} histories, {} writes, {} faults, {} rows compared, {wrong} wrong",
            self.started.elapsed().as_secs(),
            self.totals.rounds,
            self.totals.histories,
            self.totals.writes,
            self.totals.faults,
            self.totals.compared,
        );
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let seed = cli.seed.unwrap_or_else(|| rand::random::<u32>().into());
    println!("seed {seed}");
    // One thread, because daemons are watched by the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the system has what a runtime needs");
    let length = cli.seconds.map_or(Duration::MAX, Duration::from_secs);
    let now = Instant::now();
    let mut progress = Progress {
        started: now,
        printed: now,
        totals: Totals::default(),
    };
    let outcome = runtime.block_on(async {
        tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => None,
            outcome = reads(seed, length), if cli.reads => Some(outcome),
            outcome = soak(seed, length, &mut progress), if !cli.reads => Some(outcome),
        }
    });
    match outcome {
        Some(Ok(())) => {
            if !cli.reads {
                progress.print(0);
            }
            ExitCode::SUCCESS
        }
        Some(Err(text)) => {
            progress.print(1);
            println!("{text}");
            ExitCode::FAILURE
        }
        None => {
            progress.print(0);
            // Ctrl-C reached the daemons as well. Whatever is left of them, and the server, ends
            // with this process.
            exit(0)
        }
    }
}

/// The length of one storm of readers, each on a new database.
const STORM: Duration = Duration::from_secs(60);

async fn reads(seed: u64, length: Duration) -> Result<(), String> {
    let started = Instant::now();
    let (mut comparisons, mut round) = (0, 0);
    while started.elapsed() < length {
        let database = Database::fresh().await;
        let migrate = Launch::on(&database).args(&["migrate", "up"]);
        let migrated = migrate
            .env("RUN_INACTIVE_CUTOFF_TIME", &CUTOFF_SECS.to_string())
            .output()
            .await;
        assert!(migrated.status.success(), "{migrated:?}");
        let seed = Seed::of(seed.wrapping_add(round));
        let left = length.saturating_sub(started.elapsed()).min(STORM);
        let report = read_storm::run(&database, &seed, left).await;
        comparisons += report.comparisons;
        round += 1;
        println!(
            "{:>6} s  {comparisons} comparisons; {} writes, {} faults in the last round",
            started.elapsed().as_secs(),
            report.writes,
            report.faults,
        );
        if !report.differences.is_empty() {
            return Err(format!("{seed}: {:#?}", report.differences));
        }
    }
    Ok(())
}

async fn soak(seed: u64, length: Duration, progress: &mut Progress) -> Result<(), String> {
    let mut campaign = Campaign::new(seed, Faults::All).await;
    while progress.started.elapsed() < length {
        let round = campaign.round().await?;
        progress.totals.add(round);
        if progress.printed.elapsed() >= PROGRESS {
            progress.print(0);
        }
    }
    campaign.end().await;
    Ok(())
}
