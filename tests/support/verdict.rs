//! Holds the column against the definition, and shows the evidence where they differ.
//!
//! Owns the last question of every fault: is each stored status what it must be? Promises that a
//! failure prints what `status_indexer.explain` says of the runs that are wrong, and that a random
//! test which fails prints the seed that repeats it.

use std::fmt;
use std::thread;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use super::daemon;
use super::writer::Writer;

/// Repeats a random test: the number that its failure printed.
const SEED_VARIABLE: &str = "STATUS_INDEXER_TEST_SEED";

/// How long a status may take in a test whose promise is another one.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// What the database says of one run.
pub(crate) async fn explain(client: &Client, flow: &str, run: i64) -> String {
    const EXPLAIN: &str = "select status_indexer.explain($1, $2)";
    match client.query_one(EXPLAIN, &[&flow, &run.to_string()]).await {
        Ok(row) => row
            .get::<_, Option<Value>>(0)
            .map_or_else(|| "no such run".to_owned(), |value| format!("{value:#}")),
        Err(error) => format!("no explanation to be had: {error:?}"),
    }
}

/// Waits until a run has this status.
pub(crate) async fn eventually_status(writer: &Writer, flow: &str, run: i32, status: &str) {
    let end = Instant::now() + SOON;
    loop {
        daemon::check_all();
        let seen = writer.status(flow, run).await;
        if seen == status {
            return;
        }
        assert!(
            Instant::now() < end,
            "{flow}/{run} is {seen} and must be {status}\n{}\n{}",
            explain(writer.client(), flow, run.into()).await,
            daemon::tails()
        );
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until no event waits and every stored status is the definition's.
pub(crate) async fn eventually_right(client: &Client) {
    let end = Instant::now() + SOON;
    loop {
        daemon::check_all();
        let (waiting, wrong) = differences(client).await;
        if waiting == 0 && wrong.is_empty() {
            return;
        }
        if Instant::now() > end {
            panic!(
                "{waiting} events wait, {} statuses are wrong\n{}\n{}",
                wrong.len(),
                evidence(client, &wrong).await,
                daemon::tails()
            );
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// How many events wait, and the runs whose stored status is not the definition's at this moment.
pub(crate) async fn differences(client: &Client) -> (i64, Vec<Value>) {
    const COMPARE: &str = "\
select (select count(*) from status_indexer.queue), drift
  from status_indexer.compare('', -9223372036854775808, 1000000)";
    let row = client
        .query_one(COMPARE, &[])
        .await
        .expect("the column can be compared");
    let drift: Option<Value> = row.get(1);
    let wrong = drift.as_ref().and_then(Value::as_array).cloned();
    (row.get(0), wrong.unwrap_or_default())
}

async fn evidence(client: &Client, wrong: &[Value]) -> String {
    let mut text = String::new();
    for run in wrong.iter().take(3) {
        let flow = run["flow_id"].as_str().unwrap_or_default();
        let number = run["run_number"].as_i64().unwrap_or_default();
        text += &explain(client, flow, number).await;
        text.push('\n');
    }
    text
}

/// The source of a random test's choices. Prints its seed when the test fails.
pub(crate) struct Seed(u64);

impl Seed {
    /// The seed asked for, or a new one.
    pub(crate) fn new() -> Self {
        let asked = std::env::var(SEED_VARIABLE).ok();
        Self(asked.map_or_else(rand::random, |text| {
            text.parse().expect("a seed is a number")
        }))
    }

    /// The number that repeats it.
    pub(crate) fn number(&self) -> u64 {
        self.0
    }

    /// A generator; the same for the same seed and number.
    pub(crate) fn generator(&self, number: u64) -> StdRng {
        StdRng::seed_from_u64(self.0.wrapping_add(number))
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "repeat with {SEED_VARIABLE}={}", self.0)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{self}");
        }
    }
}
