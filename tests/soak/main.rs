//! `make soak`: random histories with faults of every kind, for as long as asked.
//!
//! Owns the clock, the progress and the exit code; what is played and judged is the tests' own
//! machinery. Promises that a failure ends it with 1 and says the fewest steps that fail, and the
//! seed to begin with so that the same round comes first.

#[expect(dead_code, reason = "the tests have more use for it")]
#[path = "../history/mod.rs"]
mod history;
#[expect(dead_code, reason = "the tests have more use for it")]
#[path = "../model.rs"]
mod model;
#[expect(dead_code, reason = "the tests have more use for it")]
#[path = "../support/mod.rs"]
mod support;

use std::process::{ExitCode, exit};
use std::time::{Duration, Instant};

use clap::Parser;

use history::campaign::Campaign;
use history::generate::Menu;
use history::play::Tally;

/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// Plays random histories with faults in between, on a private PostgreSQL, until one ends wrong.
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Cli {
    /// For how long; until Ctrl-C if not given
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// The first round's; each next round has the next one
    #[arg(long)]
    seed: Option<u64>,
}

/// How far it has come.
struct Progress {
    started: Instant,
    told: Instant,
    tally: Tally,
}

impl Progress {
    fn tell(&mut self, wrong: usize) {
        self.told = Instant::now();
        println!(
            "{:>6} s  {} rounds, {} histories, {} writes, {} faults, {} rows compared, {wrong} wrong",
            self.started.elapsed().as_secs(),
            self.tally.rounds,
            self.tally.histories,
            self.tally.writes,
            self.tally.faults,
            self.tally.compared,
        );
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let seed = cli.seed.unwrap_or_else(|| rand::random::<u32>().into());
    println!("seed {seed}");
    // One thread, so that the death of any daemon is seen from where its site is played.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the system has what a runtime needs");
    let length = cli.seconds.map_or(Duration::MAX, Duration::from_secs);
    let now = Instant::now();
    let mut progress = Progress {
        started: now,
        told: now,
        tally: Tally::default(),
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
            progress.tell(0);
            ExitCode::SUCCESS
        }
        Some(Err(text)) => {
            progress.tell(1);
            println!("{text}");
            ExitCode::FAILURE
        }
        None => {
            progress.tell(0);
            // The daemons heard Ctrl-C as well. Whatever is left of them, and the server, goes with
            // this process.
            exit(0)
        }
    }
}

async fn soak(seed: u64, length: Duration, progress: &mut Progress) -> Result<(), String> {
    let mut campaign = Campaign::new(seed, Menu::All).await;
    while progress.started.elapsed() < length {
        let round = campaign.round().await?;
        progress.tally.add(round);
        if progress.told.elapsed() >= PROGRESS {
            progress.tell(0);
        }
    }
    campaign.end().await;
    Ok(())
}
