//! One walk over all runs in key order: compares them with the definition in steps, without locks,
//! and has those that differ judged anew.
//!
//! The first pass, the backfill, the verification and the steady reconciliation are this walk at
//! different speeds. A first pass is durable, so that it goes on where it stopped, and fenced by
//! the state's generation, so that one that froze cannot bless a column made after it.

mod steps;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::error::Error;
use crate::metrics::Metrics;
use crate::pg::Db;
use crate::signals::{Alarm, Wake};
use crate::status::{RunKey, Status};
use crate::store::apply::{Applied, BATCH, apply, move_pending};
use crate::store::queue;
use crate::store::runs::{Compared, Detail};
use crate::store::state::{self, State};

pub use steps::Steps;

/// How many runs one step of the daemon compares: some ten milliseconds of the server's time.
pub const STEP: i32 = 2_000;

/// Statuses a second that a pass writes where each write sends one of upstream's notifications.
pub const NOTIFYING_RATE: f64 = 200.0;

/// How often a pass makes its position durable: what a crash has it compare again, and seldom enough
/// to cost nothing beside the comparing.
const NOTE: Duration = Duration::from_secs(1);

/// Statuses that a pass writes before it has the entries that they left for the index on tags moved
/// there: some hundred bytes each, at the most 20 ms for all where runs have eight tags.
const MOVE: i64 = 4_000;

/// How often the end of a pass looks whether the events before it have been applied.
const SETTLE: Duration = Duration::from_millis(100);

/// How fast a walk goes.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Runs that one step compares.
    pub step: i32,
    /// Statements at the same time. With one, a pass takes one of the server's cores at the most;
    /// with more, the next step is compared while the last one is corrected.
    pub concurrency: usize,
    /// Runs compared in a second, at most.
    pub max_rate: Option<f64>,
    /// Statuses written in a second, at most.
    pub max_writes: Option<f64>,
    /// The rest after each step, as a multiple of what the step took.
    pub rest_parts: f64,
}

impl Pace {
    /// How long to rest after a step.
    #[must_use]
    pub fn rest(&self, worked: Duration, compared: i64, written: i64) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "a step's counts are small")]
        let at_rate = |count: i64, rate: Option<f64>| {
            rate.map_or(Duration::ZERO, |rate| {
                Duration::from_secs_f64(count as f64 / rate).saturating_sub(worked)
            })
        };
        worked
            .mul_f64(self.rest_parts)
            .max(at_rate(compared, self.max_rate))
            .max(at_rate(written, self.max_writes))
    }
}

/// Those who are told what a walk finds.
#[derive(Debug, Clone, Default)]
pub struct Listeners {
    /// Called for runs that had to be put into the queue.
    pub wake: Wake,
    /// Told of deadlines.
    pub alarm: Alarm,
}

/// How far a pass has come.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Runs compared, also before a resumption.
    pub compared: i64,
    /// Runs corrected, also before a resumption.
    pub corrected: i64,
    /// Statuses written since it was started or resumed, by what was written.
    pub written: BTreeMap<Status, i64>,
}

/// How a first pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All runs were compared, and the column is to be believed.
    Complete,
    /// The column is to be believed by somebody else's pass.
    ByAnother,
    /// The column was made anew under it, its parameters changed, or a trigger is missing.
    Outdated,
    /// It was told to stop; it can be resumed.
    Stopped,
}

/// What a pass has done since its position was last made durable.
struct Unnoted {
    since: Instant,
    position: Option<RunKey>,
    compared: i64,
    corrected: i64,
}

impl Default for Unnoted {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            position: None,
            compared: 0,
            corrected: 0,
        }
    }
}

impl Unnoted {
    fn add(&mut self, position: RunKey, compared: i64, corrected: i64) {
        self.position = Some(position);
        self.compared += compared;
        self.corrected += corrected;
    }
}

/// A pass that makes the column believable.
#[derive(Debug)]
pub struct FirstPass<'a> {
    /// The way to the database.
    pub db: &'a Db,
    /// How fast.
    pub pace: Pace,
    /// Who is told.
    pub listeners: Listeners,
    /// What it counts.
    pub metrics: &'a Metrics,
}

impl FirstPass<'_> {
    /// Compares all runs from the stored position on, and blesses the column. `go_on` is asked
    /// before each step, `tell` hears of each.
    ///
    /// # Errors
    /// If a call fails; the pass can be resumed.
    pub async fn run(
        &self,
        state: State,
        go_on: impl Fn() -> bool,
        mut tell: impl FnMut(&Progress),
    ) -> Result<Outcome, Error> {
        let mut progress = Progress {
            compared: state.pass_compared,
            corrected: state.pass_corrected,
            ..Progress::default()
        };
        let position = state.pass_position;
        let mut steps = Steps::after(self.db, position, self.pace.step, Detail::Keys, 1);
        let mut step = steps.next().await?;
        let mut unnoted = Unnoted::default();
        let mut unmoved = 0;
        while let Some(last) = step.last.clone() {
            if !go_on() {
                return Ok(self
                    .note(state.generation, &mut unnoted)
                    .await?
                    .unwrap_or(Outcome::Stopped));
            }
            let start = Instant::now();
            let (written, ahead) = if self.pace.concurrency > 1 {
                let (written, next) =
                    tokio::try_join!(self.correct(&step, &mut progress), steps.next())?;
                (written, Some(next))
            } else {
                (self.correct(&step, &mut progress).await?, None)
            };
            unnoted.add(last, step.compared, written);
            if unnoted.since.elapsed() >= NOTE
                && let Some(end) = self.note(state.generation, &mut unnoted).await?
            {
                return Ok(end);
            }
            unmoved += written;
            if unmoved >= MOVE {
                move_pending(self.db).await?;
                unmoved = 0;
            }
            progress.compared += step.compared;
            progress.corrected += written;
            tell(&progress);
            let next = match ahead {
                Some(next) => next,
                None => steps.next().await?,
            };
            let rest = self.pace.rest(start.elapsed(), step.compared, written);
            if !rest.is_zero() {
                tokio::time::sleep(rest).await;
            }
            step = next;
        }
        if let Some(end) = self.note(state.generation, &mut unnoted).await? {
            return Ok(end);
        }
        move_pending(self.db).await?;
        self.settle(state.generation, step.at_secs, go_on).await
    }

    /// Makes the position durable. Returns how the pass ended, where it did.
    async fn note(&self, generation: i64, unnoted: &mut Unnoted) -> Result<Option<Outcome>, Error> {
        let Unnoted {
            position,
            compared,
            corrected,
            ..
        } = std::mem::take(unnoted);
        let Some(position) = position else {
            return Ok(None);
        };
        let believable =
            state::advance(self.db, generation, &position, compared, corrected).await?;
        Ok(match believable {
            None => Some(Outcome::Outdated),
            Some(true) => Some(Outcome::ByAnother),
            Some(false) => None,
        })
    }

    /// Waits until what was put into the queue before the end has been applied: rows that were
    /// locked, and events that came meanwhile. Drains it too, for there may be no daemon.
    async fn settle(
        &self,
        generation: i64,
        end_secs: f64,
        go_on: impl Fn() -> bool,
    ) -> Result<Outcome, Error> {
        while !queue::clear_before(self.db, end_secs).await? {
            if !go_on() {
                return Ok(Outcome::Stopped);
            }
            self.listeners.wake.call();
            let drained = queue::drain(self.db, 0, BATCH, None).await?;
            self.observe(&drained.outcome);
            if drained.outcome.applied == 0 {
                tokio::time::sleep(SETTLE).await;
            }
        }
        if !state::finish(self.db, generation).await? {
            // Where it is for the triggers: what they missed may lie behind the pass.
            state::begin_anew(self.db, generation).await?;
            return Ok(Outcome::Outdated);
        }
        self.metrics
            .reconcile_last_pass_timestamp_seconds
            .set(end_secs);
        Ok(Outcome::Complete)
    }

    async fn correct(&self, step: &Compared, progress: &mut Progress) -> Result<i64, Error> {
        self.metrics
            .reconciled_total
            .inc_by(u64::try_from(step.compared).unwrap_or(0));
        let at_once = self.pace.concurrency.saturating_sub(1).max(1);
        let differing = step.differing.len();
        let shares = differing.div_ceil(self.db.batch().most()).max(at_once);
        let calls: Vec<_> = step
            .differing
            .chunks(differing.div_ceil(shares).max(1))
            .map(|batch| apply(self.db, batch))
            .collect();
        let outcomes: Vec<Applied> = stream::iter(calls)
            .buffer_unordered(at_once)
            .try_collect()
            .await?;
        let mut written = 0;
        for outcome in &outcomes {
            self.observe(outcome);
            for change in &outcome.changes {
                *progress.written.entry(change.to).or_default() += 1;
                written += 1;
            }
        }
        Ok(written)
    }

    fn observe(&self, outcome: &Applied) {
        observe(outcome, self.metrics, &self.listeners);
    }
}

/// Counts what was applied, and passes on what others must know.
pub fn observe(outcome: &Applied, metrics: &Metrics, listeners: &Listeners) {
    outcome.observe(metrics);
    if !outcome.skipped.is_empty() {
        listeners.wake.call();
    }
    if let Some(deadline) = outcome.next_deadline_secs {
        listeners.alarm.at(deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_rests_for_the_strictest_of_its_limits() {
        let pace = Pace {
            step: 1_000,
            concurrency: 1,
            max_rate: Some(1_000.0),
            max_writes: Some(10.0),
            rest_parts: 2.0,
        };
        let worked = Duration::from_millis(100);
        assert_eq!(pace.rest(worked, 0, 0), Duration::from_millis(200));
        assert_eq!(pace.rest(worked, 1_000, 0), Duration::from_millis(900));
        assert_eq!(pace.rest(worked, 1_000, 50), Duration::from_millis(4_900));
    }
}
