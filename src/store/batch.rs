//! How many runs one call evaluates: as many as the server can evaluate within the limit on row
//! locks.
//!
//! A heartbeat of a run in a batch waits for the whole batch, so the time is limited. The time
//! depends on the server's load, caches and plans, and on the amount of evidence, so the server
//! measures each call, and all callers share the result. A single run that takes longer is still a
//! batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The longest that a batch should hold its row locks.
const MAX_LOCK_HOLD: Duration = Duration::from_millis(50);

/// The largest batch of events: larger batches save hardly any time, and the first event of a batch
/// waits for the last.
pub const MAX_BATCH: usize = 100;

/// See the module. Clones share the size.
#[derive(Debug, Clone)]
pub struct BatchSize {
    size: Arc<AtomicUsize>,
    max: usize,
}

impl BatchSize {
    /// The largest batch of a backfill, where each batch costs one commit and one flush: about half
    /// of the runs that differ in one batch of the scan.
    pub const MAX_BULK: usize = 400;

    /// The first batch: the speed of the server is not known yet, and the first call plans its
    /// statements.
    const FIRST: usize = 10;

    /// Begins small, and grows to `max`.
    #[must_use]
    pub fn up_to(max: usize) -> Self {
        Self {
            size: Arc::new(AtomicUsize::new(Self::FIRST.min(max))),
            max,
        }
    }

    /// How many runs the next call may evaluate.
    #[must_use]
    pub fn get(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    /// The largest size.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }

    /// Adapts the size to a call that held the row locks of `taken` runs for this long. Grows by
    /// doubling, and shrinks at once to the size that would have fitted.
    pub fn learn(&self, taken: usize, held: Duration) {
        let size = self.get();
        let fitting = match held.as_micros() {
            0 => self.max,
            held => usize::try_from(taken as u128 * MAX_LOCK_HOLD.as_micros() / held)
                .unwrap_or(self.max),
        };
        let next = if held > MAX_LOCK_HOLD {
            fitting.min(size)
        } else if taken >= size {
            fitting.clamp(size, size * 2)
        } else {
            size
        };
        self.size.store(next.clamp(1, self.max), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_while_they_are_quick_and_shrink_at_once_to_what_fits() {
        let size = BatchSize::up_to(100);
        let mut seen = Vec::new();
        for _ in 0..5 {
            seen.push(size.get());
            size.learn(size.get(), Duration::from_millis(5));
        }
        assert_eq!(seen, [10, 20, 40, 80, 100]);
        // Two milliseconds a run.
        size.learn(100, Duration::from_millis(200));
        assert_eq!(size.get(), 25);
        // A size that just fits does not grow.
        size.learn(25, Duration::from_millis(50));
        assert_eq!(size.get(), 25);
        // A few runs say nothing about many.
        size.learn(3, Duration::from_millis(1));
        assert_eq!(size.get(), 25);
        // One run that takes too long is still a batch.
        size.learn(1, Duration::from_secs(1));
        assert_eq!(size.get(), 1);
        size.learn(1, Duration::ZERO);
        assert_eq!(size.get(), 2);
    }
}
