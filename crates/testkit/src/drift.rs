//! Compares the stored statuses with the definition, and shows the evidence where they differ.
//!
//! Owns the final check of every test of a fault: that each stored status is the one that the
//! definition gives. Promises that a failure prints what `status_indexer.explain` returns for the
//! runs that differ. Called by the tests and by [`crate::history`].

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Client;

use crate::process;
use crate::wait::poll;
use crate::writer::Writer;

/// How long a status may take in a test that does not test latency.
pub const SOON: Duration = Duration::from_secs(30);

/// The database's explanation of one run.
pub async fn explain(client: &Client, flow: &str, run: i64) -> String {
    const EXPLAIN: &str = "select status_indexer.explain($1, $2)";
    match client.query_one(EXPLAIN, &[&flow, &run.to_string()]).await {
        Ok(row) => row
            .get::<_, Option<Value>>(0)
            .map_or_else(|| "no such run".to_owned(), |value| format!("{value:#}")),
        Err(error) => format!("no explanation: {error:?}"),
    }
}

/// Waits until a run has this status.
///
/// # Panics
/// If it does not within [`SOON`].
pub async fn eventually_status(writer: &Writer, flow: &str, run: i32, status: &str) {
    let mut last = None;
    let reached = poll(SOON, async || {
        let stored = writer.status(flow, run).await;
        let reached = stored == status;
        last = Some(stored);
        reached.then_some(())
    })
    .await;
    assert!(
        reached.is_some(),
        "{flow}/{run} is {last:?} and must be {status}\n{}\n{}",
        explain(writer.client(), flow, run.into()).await,
        process::tails()
    );
}

/// Waits until the queue is empty and every stored status equals the definition's.
///
/// # Panics
/// If this does not hold within [`SOON`].
pub async fn eventually_no_drift(client: &Client) {
    let mut last = None;
    let reached = poll(SOON, async || {
        let (queued, differing) = differences(client).await;
        let reached = queued == 0 && differing.is_empty();
        last = Some((queued, differing));
        reached.then_some(())
    })
    .await;
    if reached.is_some() {
        return;
    }
    let (queued, differing) = last.unwrap_or_default();
    panic!(
        "{queued} events in the queue, {} statuses differ\n{}\n{}",
        differing.len(),
        explanations(client, &differing).await,
        process::tails()
    );
}

/// The number of queued events, and the runs whose stored status differs from the definition's at
/// this moment.
///
/// # Panics
/// If the runs cannot be compared.
pub async fn differences(client: &Client) -> (i64, Vec<Value>) {
    const COMPARE: &str = "\
select (select count(*) from status_indexer.queue), drift
  from status_indexer.compare('', -9223372036854775808, 1000000)";
    let row = client
        .query_one(COMPARE, &[])
        .await
        .expect("the column can be compared");
    let drift: Option<Value> = row.get(1);
    let differing = drift.as_ref().and_then(Value::as_array).cloned();
    (row.get(0), differing.unwrap_or_default())
}

async fn explanations(client: &Client, differing: &[Value]) -> String {
    let mut text = String::new();
    for run in differing.iter().take(3) {
        let flow = run["flow_id"].as_str().unwrap_or_default();
        let number = run["run_number"].as_i64().unwrap_or_default();
        text += &explain(client, flow, number).await;
        text.push('\n');
    }
    text
}
