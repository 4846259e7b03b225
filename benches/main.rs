//! Benchmarks: the indexer's targets, measured on a real server with the real binary.
//!
//! `cargo bench --bench bench -- NAME... [options]`. Each uses a private PostgreSQL with durable
//! settings and prints each figure with its target. A missed target is not a failure: the exit code
//! reports only whether the measurement succeeded. Where the target is a ratio, the reference runs
//! in the same minutes on the same machine. Figures differ from machine to machine.

mod api;
mod backfill;
mod baseline;
mod dataset;
mod drain;
mod env;
mod fat_run;
mod idle;
mod latency;
mod load;
mod pages;
mod reconciler;
mod report;
mod sweep;
mod usage;
mod verify;
mod writers;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use env::BenchEnv;
use report::Report;

/// Measures status-indexer's performance targets, on a private PostgreSQL.
#[derive(Debug, Clone, Parser)]
#[command(name = "bench")]
struct Cli {
    /// Benchmarks to run
    #[arg(required = true)]
    names: Vec<Name>,
    #[command(flatten)]
    settings: Settings,
    /// Passed by cargo, and ignored
    #[arg(long, hide = true)]
    bench: bool,
}

/// The options of the command line.
#[derive(Debug, Clone, clap::Args)]
struct Settings {
    /// Runs in the largest flow of the dataset; the other flows have a fifth as many in total
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(i64).range(600..))]
    runs: i64,
    /// The seed of the dataset
    #[arg(long, default_value_t = 1)]
    seed: i64,
    /// The server's shared_buffers
    #[arg(long, default_value = "1GB")]
    shared_buffers: String,
    /// Connections that write (latency, writers)
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Length of the load, in seconds (latency, sweep)
    #[arg(long, default_value_t = 20)]
    seconds: usize,
    /// How many times the compared variants alternate (drain, verify, backfill)
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Events in the backlog (drain)
    #[arg(long, default_value_t = 50_000)]
    events: i64,
    /// Running runs with heartbeats (sweep)
    #[arg(long, default_value_t = 10_000)]
    running: usize,
    /// Measurement intervals with triggers, and as many without (writers)
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// Length of such an interval, in seconds (writers)
    #[arg(long, default_value_t = 5)]
    turn_seconds: u64,
    /// SQL to execute after the migration, to measure a change
    #[arg(long, value_name = "SQL")]
    tune: Option<String>,
    /// Command that starts a copy of the metadata service, to compare with the read API (api)
    #[arg(long, value_name = "COMMAND")]
    upstream: Option<String>,
    /// Keep the server running afterwards, for inspection, until Ctrl-C
    #[arg(long)]
    hold: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// All benchmarks
    All,
    /// The time from an event to its status
    Latency,
    /// Draining a backlog
    Drain,
    /// Detecting heartbeats that stopped
    Sweep,
    /// The cost of the triggers for writers
    Writers,
    /// Evaluating a run with very many metadata rows
    FatRun,
    /// An idle daemon
    Idle,
    /// Background reconciliation
    Reconciler,
    /// Reading by status, by SQL
    Pages,
    /// Reading by status, over HTTP
    Api,
    /// The command `verify`
    Verify,
    /// The command `backfill`
    Backfill,
}

impl Name {
    async fn run(self, env: &mut BenchEnv) -> Result<Report> {
        match self {
            Self::All => unreachable!("it is replaced by the other names"),
            Self::Latency => latency::run(env).await,
            Self::Drain => drain::run(env).await,
            Self::Sweep => sweep::run(env).await,
            Self::Writers => writers::run(env).await,
            Self::FatRun => fat_run::run(env).await,
            Self::Idle => idle::run(env).await,
            Self::Reconciler => reconciler::run(env).await,
            Self::Pages => pages::run(env).await,
            Self::Api => api::run(env).await,
            Self::Verify => verify::run(env).await,
            Self::Backfill => backfill::run(env).await,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One thread, so that the load generator uses little of the machine.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(measure(cli)),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = outcome {
        let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
        eprintln!("measurement failed: {}", causes.join(": "));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn measure(cli: Cli) -> Result<()> {
    let names: Vec<Name> = if cli.names.contains(&Name::All) {
        let all = Name::value_variants().iter().copied();
        all.filter(|name| *name != Name::All).collect()
    } else {
        cli.names
    };
    let mut env = BenchEnv::start(cli.settings).await?;
    eprintln!(
        "PostgreSQL {}, load average {}",
        env.server.version(),
        usage::load()
    );
    let mut missed = Vec::new();
    for name in names {
        let before = usage::load();
        let report = name.run(&mut env).await?;
        print!("{}", report.render());
        println!("  load average {before} before, {} after", usage::load());
        missed.extend(report.missed());
    }
    if env.settings.hold {
        let database = env.dataset().await?.name().to_owned();
        eprintln!("server kept until Ctrl-C: {}", env.server.url(&database));
        tokio::signal::ctrl_c().await?;
    }
    if !missed.is_empty() {
        println!("\nmissed targets:");
        for line in missed {
            println!("  {line}");
        }
    }
    Ok(())
}
