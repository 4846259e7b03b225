//! One ordered read over all runs, which compares each with the definition.
//!
//! Backfill, reconciliation, verification and the demo use this scan, and differ in their
//! [`Handler`], pace and checkpoint. A scan with a checkpoint resumes where it stopped, and ends
//! when it finds, at a checkpoint, that the generation in which it began is over. Takes no locks
//! and decides no status.

mod backfill;
mod batches;
mod pace;

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::status::RunKey;
use crate::store::{Compared, State, Store};

pub use backfill::{Backfill, Outcome, Progress};
pub use batches::Batches;
pub use pace::{BATCH, MAX_WRITES_WITH_UPSTREAM_NOTIFY, Pace};

/// Handles the batches of a scan.
pub trait Handler {
    /// Handles one batch; returns how many statuses it wrote.
    fn handle(&mut self, batch: &Compared) -> impl Future<Output = Result<i64, Error>> + Send;
}

/// How a scan ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum End {
    /// All runs were compared; the database's clock at the end, seconds since the epoch.
    Complete {
        /// Seconds since the epoch.
        at_secs: f64,
    },
    /// The scan was stopped before the end.
    Stopped,
    /// The column was invalidated meanwhile: the generation is over.
    Outdated,
    /// Another scan made the column valid meanwhile.
    Overtaken,
}

/// See the module.
#[derive(Debug)]
pub struct Scan<'a> {
    batches: Batches<'a>,
    pace: Pace,
    checkpoint: Option<Checkpoint<'a>>,
}

impl<'a> Scan<'a> {
    /// A scan at full speed, without a checkpoint.
    #[must_use]
    pub fn new(batches: Batches<'a>) -> Self {
        Self {
            batches,
            pace: Pace::default(),
            checkpoint: None,
        }
    }

    /// The same scan at another pace.
    #[must_use]
    pub fn at(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// The same scan with a checkpoint, made durable at this interval.
    #[must_use]
    pub fn with_checkpoint(mut self, store: &'a Store, state: &State, interval: Duration) -> Self {
        self.checkpoint = Some(Checkpoint::new(store, state, interval));
        self
    }

    /// Compares all runs and passes each batch to the handler. Stops before the next batch once
    /// `stop` is cancelled.
    ///
    /// # Errors
    /// If a call fails. A scan with a checkpoint can be resumed.
    pub async fn run(
        mut self,
        stop: &CancellationToken,
        handler: &mut impl Handler,
    ) -> Result<End, Error> {
        let mut ahead = None;
        loop {
            let start = Instant::now();
            let batch = match ahead.take() {
                Some(batch) => batch,
                None => self.batches.next().await?,
            };
            let Some(last) = batch.last.clone() else {
                let ended = self.save_checkpoint().await?;
                let at_secs = batch.at_secs;
                return Ok(ended.unwrap_or(End::Complete { at_secs }));
            };
            if stop.is_cancelled() {
                let ended = self.save_checkpoint().await?;
                return Ok(ended.unwrap_or(End::Stopped));
            }
            let written = if self.pace.concurrency > 1 {
                let (written, next) =
                    tokio::try_join!(handler.handle(&batch), self.batches.next())?;
                ahead = Some(next);
                written
            } else {
                handler.handle(&batch).await?
            };
            if let Some(checkpoint) = &mut self.checkpoint {
                checkpoint.advance(last, batch.compared, written);
                if checkpoint.is_due()
                    && let Some(ended) = checkpoint.save().await?
                {
                    return Ok(ended);
                }
            }
            let pause = self.pace.pause(start.elapsed(), &batch, written);
            if !pause.is_zero() {
                stop.run_until_cancelled(tokio::time::sleep(pause)).await;
            }
        }
    }

    async fn save_checkpoint(&mut self) -> Result<Option<End>, Error> {
        match &mut self.checkpoint {
            Some(checkpoint) => checkpoint.save().await,
            None => Ok(None),
        }
    }
}

/// The durable position of a scan, and the work done since it was last saved.
#[derive(Debug)]
struct Checkpoint<'a> {
    store: &'a Store,
    generation: i64,
    /// Whether the column was valid when the scan began.
    valid: bool,
    interval: Duration,
    saved_at: Instant,
    position: Option<RunKey>,
    compared: i64,
    corrected: i64,
}

impl<'a> Checkpoint<'a> {
    fn new(store: &'a Store, state: &State, interval: Duration) -> Self {
        Self {
            store,
            generation: state.generation,
            valid: state.valid,
            interval,
            saved_at: Instant::now(),
            position: None,
            compared: 0,
            corrected: 0,
        }
    }

    fn advance(&mut self, position: RunKey, compared: i64, corrected: i64) {
        self.position = Some(position);
        self.compared += compared;
        self.corrected += corrected;
    }

    fn is_due(&self) -> bool {
        self.saved_at.elapsed() >= self.interval
    }

    /// Saves the position. Returns how the scan ended, if it must end.
    async fn save(&mut self) -> Result<Option<End>, Error> {
        let Some(position) = self.position.take() else {
            return Ok(None);
        };
        let (compared, corrected) = (
            std::mem::take(&mut self.compared),
            std::mem::take(&mut self.corrected),
        );
        self.saved_at = Instant::now();
        let valid = self
            .store
            .checkpoint(self.generation, &position, compared, corrected)
            .await?;
        Ok(match valid {
            None => Some(End::Outdated),
            Some(valid) if valid == self.valid => None,
            Some(true) => Some(End::Overtaken),
            Some(false) => Some(End::Outdated),
        })
    }
}
