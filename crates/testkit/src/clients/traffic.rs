//! Simulated traffic: many clients of a metadata service at once, each executing one scenario.
//!
//! Owns the clients. Promises the writes of [`super::scenario`] in their order and at their times
//! (or later, if the database is slow); a write that fails because the database is unavailable is
//! retried, as by real clients. Knows the status that each finished run must have, without using
//! the definition. Called by the demo.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use deadpool_postgres::PoolError;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_postgres::Config;
use tokio_util::sync::CancellationToken;

use super::is_connection_lost;
use super::scenario::{ClientRates, Scenario, Scenarios, Write};
use super::service::{Datum, Run, Service};
use crate::oracle::Status;

/// How long a client waits before it retries a write.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The number of a run that does not exist.
const ORPHAN: i64 = 2_000_000_000;

/// A run whose scenario is finished.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The flow's name.
    pub flow: String,
    /// The run's number.
    pub number: i64,
    /// The status that it must have once the cutoff has passed.
    pub expected: Status,
}

/// The counts of writes so far.
#[derive(Debug, Default)]
pub struct Written {
    /// Runs created.
    pub runs: AtomicU64,
    /// Heartbeats sent.
    pub heartbeats: AtomicU64,
    /// Metadata rows, duplicates included.
    pub metadata: AtomicU64,
    /// Metadata rows that repeat an earlier row.
    pub duplicates: AtomicU64,
    /// `attempt_ok` rows whose value is not a boolean.
    pub malformed: AtomicU64,
    /// Changes of tags.
    pub tags: AtomicU64,
    /// Changes of tags that had to be retried.
    pub conflicts: AtomicU64,
    /// Writes that were retried because the database was unavailable.
    pub retried: AtomicU64,
    finished: Mutex<Vec<Finished>>,
}

impl Written {
    /// Runs, heartbeats, metadata rows and changes of tags.
    #[must_use]
    pub fn total(&self) -> u64 {
        [&self.runs, &self.heartbeats, &self.metadata, &self.tags]
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }

    /// The runs whose scenarios are finished.
    #[must_use]
    pub fn finished(&self) -> Vec<Finished> {
        self.finished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Clients that write until they are stopped.
#[derive(Debug)]
pub struct Traffic {
    service: Service,
    scenarios: Scenarios,
    written: Arc<Written>,
}

impl Traffic {
    /// The traffic of this seed, on a database that has upstream's tables.
    #[must_use]
    pub fn new(config: Config, seed: u64, rates: ClientRates) -> Self {
        Self {
            service: Service::new(config, rates.heartbeat),
            scenarios: Scenarios::new(seed, rates),
            written: Arc::default(),
        }
    }

    /// The counts, which increase while the clients write.
    #[must_use]
    pub fn written(&self) -> Arc<Written> {
        Arc::clone(&self.written)
    }

    /// Starts runs until `stop`; then all clients stop writing at once.
    ///
    /// # Errors
    /// If the database refuses a write.
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        let mut clients = JoinSet::new();
        let mut at = Instant::now();
        for (pause, scenario) in self.scenarios {
            at += pause;
            let due = tokio::time::sleep_until(at);
            if stop.run_until_cancelled(due).await.is_none() {
                break;
            }
            let client = Client {
                service: self.service.clone(),
                written: Arc::clone(&self.written),
                run: None,
                tasks: HashMap::new(),
                tags: 0,
            };
            clients.spawn(client.execute(scenario, stop.clone()));
            while let Some(ended) = clients.try_join_next() {
                ended??;
            }
        }
        while let Some(ended) = clients.join_next().await {
            ended??;
        }
        Ok(())
    }
}

struct Client {
    service: Service,
    written: Arc<Written>,
    run: Option<Run>,
    tasks: HashMap<&'static str, i64>,
    tags: u32,
}

impl Client {
    async fn execute(mut self, scenario: Scenario, stop: CancellationToken) -> Result<()> {
        let start = Instant::now();
        for (at, write) in &scenario.writes {
            let due = tokio::time::sleep_until(start + *at);
            if stop.run_until_cancelled(due).await.is_none() {
                return Ok(());
            }
            while let Err(error) = self.send(&scenario, *write).await {
                if !is_retryable(&error) {
                    return Err(error);
                }
                self.written.retried.fetch_add(1, Ordering::Relaxed);
                let pause = tokio::time::sleep(RETRY_PAUSE);
                if stop.run_until_cancelled(pause).await.is_none() {
                    return Ok(());
                }
            }
        }
        if let Some(run) = self.run {
            let finished = Finished {
                flow: run.flow.to_owned(),
                number: run.number,
                expected: scenario.final_status(),
            };
            self.written
                .finished
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(finished);
        }
        Ok(())
    }

    async fn send(&mut self, scenario: &Scenario, write: Write) -> Result<()> {
        let Some(run) = self.run else {
            let Write::Run { first_heartbeat } = write else {
                return Ok(());
            };
            let created = self
                .service
                .create_run(scenario.flow, scenario.user, first_heartbeat)
                .await?;
            self.run = Some(created);
            count(&self.written.runs, 1);
            return Ok(());
        };
        match write {
            Write::Run { .. } => {}
            Write::Heartbeat => {
                self.service.heartbeat(&run).await?;
                count(&self.written.heartbeats, 1);
            }
            Write::Task { step } => {
                let task = self.service.create_task(&run, step).await?;
                self.tasks.insert(step, task);
            }
            Write::Attempt {
                step,
                number,
                copies,
            } => {
                let text = number.to_string();
                self.metadata(&run, step, number, "attempt", &text, copies)
                    .await?;
                let origin = run.number.to_string();
                self.metadata(&run, step, number, "origin-run-id", &origin, 1)
                    .await?;
                self.metadata(&run, step, number, "ds-type", "s3", 1)
                    .await?;
                self.metadata(&run, step, number, "ds-root", "s3://bucket/metaflow", 1)
                    .await?;
            }
            Write::Done {
                step,
                number,
                ok,
                copies,
            } => {
                let text = number.to_string();
                self.metadata(&run, step, number, "attempt-done", &text, 1)
                    .await?;
                self.metadata(&run, step, number, "attempt_ok", ok, copies)
                    .await?;
                if !matches!(ok, "True" | "False") {
                    count(&self.written.malformed, 1);
                }
            }
            Write::Tag => {
                self.tags += 1;
                let tag = format!("note:{}", self.tags);
                let conflicts = self.service.add_tag(&run, &tag).await?;
                count(&self.written.tags, 1);
                count(&self.written.conflicts, conflicts);
            }
            Write::Orphan => {
                let nobody = Run {
                    number: ORPHAN,
                    ..run
                };
                self.metadata(&nobody, "end", 0, "attempt_ok", "False", 1)
                    .await?;
            }
        }
        Ok(())
    }

    /// Writes a metadata row of the step's task, as many times as the client does.
    async fn metadata(
        &self,
        run: &Run,
        step: &str,
        attempt: u8,
        field: &str,
        value: &str,
        copies: u8,
    ) -> Result<()> {
        let kind = match field {
            "attempt_ok" => "internal_attempt_status",
            field => field,
        };
        let datum = Datum {
            step,
            task: self.tasks.get(step).copied().unwrap_or(1),
            field,
            kind,
            value,
            attempt,
        };
        for _ in 0..copies {
            self.service.metadata(run, datum).await?;
            count(&self.written.metadata, 1);
        }
        count(&self.written.duplicates, u64::from(copies) - 1);
        Ok(())
    }
}

/// Whether the database was unavailable.
fn is_retryable(error: &anyhow::Error) -> bool {
    if let Some(error) = error.downcast_ref::<PoolError>() {
        return match error {
            PoolError::Backend(error) => is_connection_lost(error) || error.code().is_none(),
            PoolError::Timeout(_) => true,
            _ => false,
        };
    }
    let error = error.downcast_ref::<tokio_postgres::Error>();
    error.is_some_and(is_connection_lost)
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
