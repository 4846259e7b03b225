//! `make soak`: random histories with faults of every kind, until the time is over or one fails.
//!
//! Owns the time limit, the progress lines and the exit code; the histories are those of the tests.
//! Promises that a failure ends it with exit code 1 and prints the fewest steps that fail, and the
//! seed with which that round comes first.

use std::process::{ExitCode, exit};
use std::time::{Duration, Instant};

use clap::Parser;

use testkit::history::campaign::Campaign;
use testkit::history::generate::Faults;
use testkit::history::run::Totals;

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
            outcome = soak(seed, length, &mut progress) => Some(outcome),
        }
    });
    match outcome {
        Some(Ok(())) => {
            progress.print(0);
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
