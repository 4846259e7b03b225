//! Benchmarks: the indexer's targets, measured on a real server with the real binary.
//!
//! `cargo bench --bench bench -- NAME... [options]`. Each uses a private PostgreSQL with durable
//! settings and prints what it measured beside the target. A missed target does not fail: the exit
//! code only reports whether the benchmark could measure. Where the target is a ratio, the reference
//! runs in the same minutes on the same machine. Figures differ from machine to machine.

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

/// Measures what status-indexer must reach, on a private PostgreSQL.
#[derive(Debug, Clone, Parser)]
#[command(name = "bench")]
struct Cli {
    /// What to measure
    #[arg(required = true)]
    names: Vec<Name>,
    #[command(flatten)]
    settings: Settings,
    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
}

/// What can be changed from the command line.
#[derive(Debug, Clone, clap::Args)]
struct Settings {
    /// Runs of the big flow in the dataset; a fifth as many in other flows
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(i64).range(600..))]
    runs: i64,
    /// The seed of the dataset
    #[arg(long, default_value_t = 1)]
    seed: i64,
    /// The server's shared_buffers
    #[arg(long, default_value = "1GB")]
    shared_buffers: String,
    /// Connections that write
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Seconds of each load
    #[arg(long, default_value_t = 20)]
    seconds: usize,
    /// How many times the compared variants alternate
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Events of a backlog
    #[arg(long, default_value_t = 50_000)]
    events: i64,
    /// Running runs with heartbeats
    #[arg(long, default_value_t = 10_000)]
    running: usize,
    /// Turns with triggers; there are as many without
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// Seconds of such a turn
    #[arg(long, default_value_t = 5)]
    turn_seconds: u64,
    /// Statements to run after the installation, to measure a change
    #[arg(long, value_name = "SQL")]
    tune: Option<String>,
    /// Starts a copy of the metadata service, to be measured beside the read API
    #[arg(long, value_name = "COMMAND")]
    upstream: Option<String>,
    /// Keep the server at the end, for inspection, until Ctrl-C
    #[arg(long)]
    hold: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// All of them
    All,
    /// From an event to its status
    Latency,
    /// Draining a backlog
    Drain,
    /// Heartbeats that stop
    Sweep,
    /// The cost of triggers
    Writers,
    /// Evaluating a run with very many metadata rows
    FatRun,
    /// An idle daemon
    Idle,
    /// Background reconciliation
    Reconciler,
    /// Reading by status, the statements
    Pages,
    /// Reading by status, over HTTP
    Api,
    /// The command verify
    Verify,
    /// The command backfill
    Backfill,
}

impl Name {
    async fn run(self, env: &mut BenchEnv) -> Result<Report> {
        match self {
            Self::All => unreachable!("it was replaced by the others"),
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
    // One thread, so that the load generator takes little from what is measured.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(measure(cli)),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = outcome {
        let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
        eprintln!("could not measure: {}", causes.join(": "));
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
        "PostgreSQL {}, load {}",
        env.server.version(),
        usage::load()
    );
    let mut missed = Vec::new();
    for name in names {
        let before = usage::load();
        let report = name.run(&mut env).await?;
        print!("{}", report.render());
        println!(
            "  load of the machine {before} before, {} after",
            usage::load()
        );
        missed.extend(report.missed());
    }
    if env.settings.hold {
        let database = env.dataset().await?.name().to_owned();
        eprintln!("held: {}", env.server.url(&database));
        tokio::signal::ctrl_c().await?;
    }
    if !missed.is_empty() {
        println!("\nmissed:");
        for line in missed {
            println!("  {line}");
        }
    }
    Ok(())
}
