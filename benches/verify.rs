//! The `verify` command on a million runs, compared with one set-based select of the definition.

use anyhow::Result;
use tokio::time::Instant;

use crate::baseline;
use crate::env::{BenchEnv, LONG_CUTOFF_SECS, command};
use crate::report::{Report, Target, median};

pub(crate) async fn run(env: &mut BenchEnv) -> Result<Report> {
    let settings = env.settings.clone();
    let mut report = Report::new(
        "verify",
        format!(
            "{} runs in one flow and a fifth as many in others, {} rounds",
            settings.runs, settings.rounds
        ),
    );
    let (database, daemon) = env.indexed_dataset().await?;
    daemon.terminate().await;
    let client = database.client().await;
    client.batch_execute("vacuum analyze").await?;
    client.batch_execute("set jit = off").await?;
    let (mut plain, mut proof, mut peak) = (Vec::new(), Vec::new(), 0.0_f64);
    for _ in 0..settings.rounds {
        let start = Instant::now();
        client
            .query_one(baseline::COUNT_ALL, &[&i64::from(LONG_CUTOFF_SECS)])
            .await?;
        plain.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        peak = peak.max(command(database, &["verify"]).await?);
        proof.push(start.elapsed().as_secs_f64());
    }
    client
        .batch_execute("set max_parallel_workers_per_gather = 0")
        .await?;
    let start = Instant::now();
    client
        .query_one(baseline::COUNT_ALL, &[&i64::from(LONG_CUTOFF_SECS)])
        .await?;
    let alone = start.elapsed().as_secs_f64();

    report.record("plain select", median(&plain), "s");
    report.record("plain select, without parallel workers", alone, "s");
    report.record("verify", median(&proof), "s");
    let ratio = median(&proof) / median(&plain);
    report.figure("verify / plain select", ratio, "", Target::Below(1.3));
    report.record(
        "verify / plain select without parallel workers",
        median(&proof) / alone,
        "",
    );
    report.figure(
        "memory of the command, peak",
        peak,
        "MiB",
        Target::Below(64.0),
    );
    Ok(report)
}
