//! Benchmarks: what the indexer must reach, measured on a real server with the real binary.
//!
//! `cargo bench --bench bench -- NAME... [options]`. Each starts from a private PostgreSQL with
//! durable settings, prints what it measured with the target beside it, and judges nothing: the
//! exit code says only whether it could measure. Where the target is a ratio, what it is measured
//! against runs in the same minutes on the same machine. Figures differ from machine to machine.

mod api;
mod backfill;
mod baseline;
mod dataset;
mod drain;
mod fat_run;
mod idle;
mod latency;
mod load;
mod pages;
mod reconciler;
mod report;
mod site;
mod sweep;
mod usage;
mod verify;
mod writers;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use report::Report;
use site::Site;

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
    /// What the dataset is made from
    #[arg(long, default_value_t = 1)]
    seed: i64,
    /// The server's
    #[arg(long, default_value = "1GB")]
    shared_buffers: String,
    /// Connections that write
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Seconds of each load
    #[arg(long, default_value_t = 20)]
    seconds: usize,
    /// How often what is compared takes turns
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Events of a backlog
    #[arg(long, default_value_t = 50_000)]
    events: i64,
    /// Running runs whose heartbeats are watched
    #[arg(long, default_value_t = 10_000)]
    running: usize,
    /// Turns with triggers, and as many without
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// Seconds of such a turn
    #[arg(long, default_value_t = 5)]
    turn_seconds: u64,
    /// Statements to run on the installed database, to see what a change of it does
    #[arg(long, value_name = "SQL")]
    tune: Option<String>,
    /// Starts a copy of the metadata service, to be measured beside the read API
    #[arg(long, value_name = "COMMAND")]
    upstream: Option<String>,
    /// Keep the server at the end, for a look, until Ctrl-C
    #[arg(long)]
    hold: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// All of them
    All,
    /// From an event to its status
    Latency,
    /// Working off a backlog
    Drain,
    /// Heartbeats that stop
    Sweep,
    /// What triggers cost
    Writers,
    /// Judging a run with very many metadata rows
    FatRun,
    /// Nothing to do
    Idle,
    /// The steady walk over all runs
    Reconciler,
    /// Reading by status, the statements
    Pages,
    /// Reading by status, over HTTP
    Api,
    /// Proving the column
    Verify,
    /// Filling the column
    Backfill,
}

impl Name {
    async fn run(self, site: &mut Site) -> Result<Report> {
        match self {
            Self::All => unreachable!("it stands for the others"),
            Self::Latency => latency::run(site).await,
            Self::Drain => drain::run(site).await,
            Self::Sweep => sweep::run(site).await,
            Self::Writers => writers::run(site).await,
            Self::FatRun => fat_run::run(site).await,
            Self::Idle => idle::run(site).await,
            Self::Reconciler => reconciler::run(site).await,
            Self::Pages => pages::run(site).await,
            Self::Api => api::run(site).await,
            Self::Verify => verify::run(site).await,
            Self::Backfill => backfill::run(site).await,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One thread: the load takes little of the machine from what is measured.
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
    let mut site = Site::start(cli.settings).await?;
    eprintln!(
        "PostgreSQL {}, load {}",
        site.server.version(),
        usage::load()
    );
    let mut missed = Vec::new();
    for name in names {
        let before = usage::load();
        let report = name.run(&mut site).await?;
        print!("{}", report.render());
        println!(
            "  load of the machine {before} before, {} after",
            usage::load()
        );
        missed.extend(report.missed());
    }
    if site.settings.hold {
        let database = site.dataset().await?.name().to_owned();
        eprintln!("held: {}", site.server.url(&database));
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
