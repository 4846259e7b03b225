//! Simulated traffic: many clients of a metadata service at once, each living one life.
//!
//! Owns the clients. Promises the writes of [`super::lives`] in their order and at their times (or
//! later, where the database is slow); a write that fails because the database is away is made
//! again, as real clients do. Knows how each finished life must read, without asking the
//! definition. Called by the demo; benchmarks and tests can run it as well.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_postgres::Config;
use tokio_util::sync::CancellationToken;

use super::lives::{Act, Life, Lives, Pace};
use super::service::{Datum, Run, Service};
use crate::error::{Error, Remedy};
use crate::status::{RunKey, Status};

/// What a client waits before it repeats a write.
const AGAIN: Duration = Duration::from_millis(200);

/// Keys that no run has.
const ORPHAN: i64 = 2_000_000_000;

/// What was written so far.
#[derive(Debug, Default)]
pub struct Written {
    /// Runs created.
    pub runs: AtomicU64,
    /// Heartbeats sent.
    pub heartbeats: AtomicU64,
    /// Metadata rows, duplicates included.
    pub metadata: AtomicU64,
    /// Metadata rows that had been written before.
    pub duplicates: AtomicU64,
    /// `attempt_ok` rows of end steps that are no boolean.
    pub malformed: AtomicU64,
    /// Changes of tags.
    pub tags: AtomicU64,
    /// Changes of tags that had to be tried again.
    pub conflicts: AtomicU64,
    /// Writes made again because the database was away.
    pub repeated: AtomicU64,
    /// How each run must read whose life was lived to its end, once the cutoff has passed.
    ended: Mutex<Vec<(RunKey, Status)>>,
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

    /// How each run must read whose life was lived to its end, once the cutoff has passed.
    #[must_use]
    pub fn ended(&self) -> Vec<(RunKey, Status)> {
        self.ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Clients that live until they are told to stop.
#[derive(Debug)]
pub struct Traffic {
    service: Service,
    lives: Lives,
    written: Arc<Written>,
}

impl Traffic {
    /// The traffic of this seed on a database that has upstream's tables.
    #[must_use]
    pub fn new(config: Config, seed: u64, pace: Pace) -> Self {
        Self {
            service: Service::new(config, pace.heartbeat),
            lives: Lives::new(seed, pace),
            written: Arc::default(),
        }
    }

    /// What is written, as it is written.
    #[must_use]
    pub fn written(&self) -> Arc<Written> {
        Arc::clone(&self.written)
    }

    /// Starts runs until `stop`; then all clients fall silent at once.
    ///
    /// # Errors
    /// If the database refuses a write.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut clients = JoinSet::new();
        let mut at = Instant::now();
        for (pause, life) in self.lives {
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
            clients.spawn(client.live(life, stop.clone()));
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
    async fn live(mut self, life: Life, stop: CancellationToken) -> Result<(), Error> {
        let born = Instant::now();
        for (at, act) in &life.acts {
            let due = tokio::time::sleep_until(born + *at);
            if stop.run_until_cancelled(due).await.is_none() {
                return Ok(());
            }
            while let Err(error) = self.perform(&life, *act).await {
                if error.remedy() != Remedy::Retry {
                    return Err(error);
                }
                self.written.repeated.fetch_add(1, Ordering::Relaxed);
                let pause = tokio::time::sleep(AGAIN);
                if stop.run_until_cancelled(pause).await.is_none() {
                    return Ok(());
                }
            }
        }
        if let Some(run) = self.run {
            let key = RunKey {
                flow_id: run.flow.to_owned(),
                run_number: run.number,
            };
            self.written
                .ended
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((key, life.ends_as()));
        }
        Ok(())
    }

    async fn perform(&mut self, life: &Life, act: Act) -> Result<(), Error> {
        let Some(run) = self.run else {
            let Act::Run { first_heartbeat } = act else {
                return Ok(());
            };
            let created = self
                .service
                .create_run(life.flow, life.user, first_heartbeat)
                .await?;
            self.run = Some(created);
            count(&self.written.runs, 1);
            return Ok(());
        };
        match act {
            Act::Run { .. } => {}
            Act::Heartbeat => {
                self.service.heartbeat(&run).await?;
                count(&self.written.heartbeats, 1);
            }
            Act::Task { step } => {
                let task = self.service.create_task(&run, step).await?;
                self.tasks.insert(step, task);
            }
            Act::Attempt {
                step,
                number,
                copies,
            } => {
                let text = number.to_string();
                self.tell(&run, step, number, "attempt", &text, copies)
                    .await?;
                let origin = run.number.to_string();
                self.tell(&run, step, number, "origin-run-id", &origin, 1)
                    .await?;
                self.tell(&run, step, number, "ds-type", "s3", 1).await?;
                self.tell(&run, step, number, "ds-root", "s3://bucket/metaflow", 1)
                    .await?;
            }
            Act::Done {
                step,
                number,
                ok,
                copies,
            } => {
                let text = number.to_string();
                self.tell(&run, step, number, "attempt-done", &text, 1)
                    .await?;
                self.tell(&run, step, number, "attempt_ok", ok, copies)
                    .await?;
                if !matches!(ok, "True" | "False") {
                    count(&self.written.malformed, 1);
                }
            }
            Act::Tag => {
                self.tags += 1;
                let tag = format!("note:{}", self.tags);
                let conflicts = self.service.add_tag(&run, &tag).await?;
                count(&self.written.tags, 1);
                count(&self.written.conflicts, conflicts);
            }
            Act::Orphan => {
                let nobody = Run {
                    number: ORPHAN,
                    ..run
                };
                self.tell(&nobody, "end", 0, "attempt_ok", "False", 1)
                    .await?;
            }
        }
        Ok(())
    }

    /// Writes a metadata row of the step's task, as often as the client does.
    async fn tell(
        &self,
        run: &Run,
        step: &str,
        attempt: u8,
        field: &str,
        value: &str,
        copies: u8,
    ) -> Result<(), Error> {
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

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
