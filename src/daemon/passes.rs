//! Which rows of the queue the worker takes next.
//!
//! Two kinds of passes alternate. A pass over new rows begins where the last one ended. A full pass
//! goes through the whole queue, batch by batch: it finds rows that were committed late under a low
//! id, and tries the rows that were kept again, because their runs were locked or the server refused
//! them. Passes over new rows leave kept rows out, so that any number of them delays no other run.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::store::{Drained, QueueRows};

/// Ids are committed out of order, so a pass over new rows begins this many ids before the last one
/// seen.
const SLACK: i64 = 2_000;

/// Full passes may take one part in this many of the time: they are slow if an old snapshot keeps
/// many dead rows, or if many rows are kept.
const FULL_PASS_PARTS: u32 = 20;

/// A full pass is made at least this often while there is work, unless full passes are slow.
const FULL_PASS: Duration = Duration::from_millis(500);

/// The first and the longest wait before kept rows are tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// The same limit as [`FULL_PASS_PARTS`] while rows are kept, which have to be tried soon.
const RETRY_PARTS: u32 = 5;

/// The passes of one term.
#[derive(Debug)]
pub(super) struct Passes {
    /// Rows up to this id were most probably taken already.
    hint: i64,
    /// Kept rows above the hint.
    kept_ids: BTreeSet<i64>,
    /// Whether there are kept rows, also below the hint.
    keeps: bool,
    retry: Backoff,
    /// The full pass in progress.
    full: Option<FullPass>,
    /// When the next one begins.
    full_due: Instant,
    /// The earliest time at which it may begin.
    full_not_before: Instant,
    /// Whether the last batch was one of a full pass.
    last_was_full: bool,
    /// The highest id seen.
    highest: i64,
}

#[derive(Debug, Default)]
struct FullPass {
    /// The highest id that was known when it began: rows above it are new.
    end: i64,
    /// The highest id seen.
    last_id: Option<i64>,
    /// The time its own batches have taken.
    spent: Duration,
    /// Whether it has kept a row.
    keeps: bool,
}

impl Passes {
    /// Begins with a full pass.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            hint: 0,
            kept_ids: BTreeSet::new(),
            keeps: false,
            retry: Backoff::new(RETRY.0, RETRY.1),
            full: None,
            full_due: now,
            full_not_before: now,
            last_was_full: false,
            highest: 0,
        }
    }

    /// The rows of the next batch.
    pub(super) fn next(&mut self, now: Instant) -> QueueRows {
        if self.full.is_none() && now >= self.full_due {
            self.full = Some(FullPass {
                end: self.highest,
                ..FullPass::default()
            });
            self.last_was_full = false;
        }
        match &self.full {
            Some(pass) if !self.last_was_full => {
                self.last_was_full = true;
                QueueRows {
                    after_id: pass.last_id.unwrap_or(0),
                    except_ids: Vec::new(),
                }
            }
            _ => {
                self.last_was_full = false;
                QueueRows {
                    after_id: self.hint,
                    except_ids: self.kept_ids.iter().copied().collect(),
                }
            }
        }
    }

    /// Records the outcome of a batch.
    pub(super) fn advance(
        &mut self,
        rows: &QueueRows,
        drained: &Drained,
        took: Duration,
        now: Instant,
    ) {
        if self.last_was_full {
            self.advance_full(rows, drained, took, now);
        } else {
            if let Some(last_id) = drained.last_id {
                self.hint = self.hint.max(last_id - SLACK);
            }
            if !drained.kept_ids.is_empty() {
                // Perhaps the lock is held for a short time only.
                self.retry.reset();
                let due = (now + self.retry.next_wait()).max(self.full_not_before);
                self.full_due = self.full_due.min(due);
            }
        }
        self.highest = self.highest.max(drained.last_id.unwrap_or(0));
        self.kept_ids.extend(&drained.kept_ids);
        self.keeps |= !drained.kept_ids.is_empty();
        // The end of a full pass may lower the hint.
        let pass = self.full.as_ref().and_then(|pass| pass.last_id);
        let lowest = pass.map_or(self.hint, |last_id| self.hint.min(last_id - SLACK));
        self.kept_ids = self.kept_ids.split_off(&(lowest + 1));
    }

    fn advance_full(&mut self, rows: &QueueRows, drained: &Drained, took: Duration, now: Instant) {
        let Some(mut pass) = self.full.take() else {
            return;
        };
        pass.spent += took;
        pass.keeps |= !drained.kept_ids.is_empty();
        pass.last_id = drained.last_id.or(pass.last_id);
        // The rows of this batch were tried again.
        let reached = if drained.is_full() {
            drained.last_id.unwrap_or(i64::MAX)
        } else {
            i64::MAX
        };
        self.kept_ids
            .retain(|id| *id <= rows.after_id || *id > reached);
        if drained.is_full() && (pass.end == 0 || reached < pass.end) {
            self.full = Some(pass);
            return;
        }
        if let Some(last_id) = pass.last_id
            && !drained.is_full()
        {
            // Also right if the ids have restarted meanwhile.
            self.hint = last_id - SLACK;
            self.highest = last_id;
        }
        self.keeps = pass.keeps || !self.kept_ids.is_empty();
        self.full_not_before = now + pass.spent * RETRY_PARTS;
        self.full_due = if self.keeps {
            self.full_not_before.max(now + self.retry.next_wait())
        } else {
            self.retry.reset();
            now + FULL_PASS.max(pass.spent * FULL_PASS_PARTS)
        };
    }

    /// Whether a full pass is in progress.
    pub(super) fn is_full_pass(&self) -> bool {
        self.full.is_some()
    }

    /// How long until kept rows are tried again; none if there are none.
    pub(super) fn retry_wait(&self, now: Instant) -> Option<Duration> {
        self.keeps
            .then(|| self.full_due.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: usize = 100;
    const CALL: Duration = Duration::from_millis(1);

    /// A queue in memory.
    struct Queue {
        ids: BTreeSet<i64>,
        locked: BTreeSet<i64>,
        passes: Passes,
        now: Instant,
    }

    impl Queue {
        fn new(locked: std::ops::Range<i64>) -> Self {
            let now = Instant::now();
            Self {
                ids: locked.clone().collect(),
                locked: locked.collect(),
                passes: Passes::new(now),
                now,
            }
        }

        /// One poll; returns the ids that it tried.
        fn poll(&mut self) -> Vec<i64> {
            let rows = self.passes.next(self.now);
            let except: BTreeSet<&i64> = rows.except_ids.iter().collect();
            let tried: Vec<i64> = self
                .ids
                .range(rows.after_id + 1..)
                .filter(|id| !except.contains(id))
                .take(BATCH)
                .copied()
                .collect();
            let (kept, done): (Vec<i64>, Vec<i64>) =
                tried.iter().partition(|id| self.locked.contains(id));
            for id in &done {
                self.ids.remove(id);
            }
            self.now += CALL;
            let drained = Drained {
                requested: BATCH,
                claimed: tried.len(),
                last_id: tried.last().copied(),
                kept_ids: kept,
                ..Drained::default()
            };
            self.passes.advance(&rows, &drained, CALL, self.now);
            tried
        }

        fn polls_until_done(&mut self, id: i64) -> usize {
            (1..)
                .find(|_| {
                    self.poll();
                    !self.ids.contains(&id)
                })
                .expect("the range is endless")
        }
    }

    #[test]
    fn kept_rows_delay_no_new_row() {
        for locked in [1, 100, 2_000, 20_000] {
            let mut queue = Queue::new(1..locked + 1);
            // All are tried once, and the first full pass ends.
            while queue.passes.is_full_pass() || queue.passes.kept_ids.is_empty() {
                queue.poll();
            }
            for id in (locked + 1..locked + 60_000).step_by(200) {
                queue.ids.insert(id);
                let polls = queue.polls_until_done(id);
                assert!(polls <= 2, "{polls} polls for {id} behind {locked}");
            }
        }
    }

    #[test]
    fn kept_rows_are_tried_again_and_cost_a_part_of_the_time() {
        let mut queue = Queue::new(1..5_001);
        let (mut tries, polls) = (0, 10_000);
        for _ in 0..polls {
            tries += queue.poll().len();
        }
        let share = tries / BATCH * 100 / polls;
        assert!((5..=20).contains(&share), "{share} % of the polls");
        queue.locked.clear();
        for _ in 0..1_000 {
            queue.poll();
        }
        assert_eq!(queue.ids.len(), 0);
    }

    #[test]
    fn a_row_that_is_committed_late_is_found() {
        let mut queue = Queue::new(0..0);
        queue.ids.extend(10_000..10_100);
        queue.polls_until_done(10_099);
        // Within the slack by the next pass, far below it by a full one.
        for (id, most) in [(8_500, 2), (5, 502)] {
            queue.ids.insert(id);
            let polls = queue.polls_until_done(id);
            assert!(polls <= most, "{polls} polls for {id}");
        }
    }
}
