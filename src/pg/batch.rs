//! How many runs one call judges: as many as the server does while it may hold their rows.
//!
//! A heartbeat that meets a batch waits for the whole of it, so what is bounded is the time. It
//! depends on the server's load, its caches and plans, and on how much evidence runs have; so it is
//! measured by the server, call by call, and shared by all that call. Promises nothing about a
//! single run that takes longer by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The longest that a batch is to hold its rows.
const HOLD: Duration = Duration::from_millis(50);

/// See the module. Clones share the size.
#[derive(Debug, Clone)]
pub struct BatchSize {
    size: Arc<AtomicUsize>,
    most: usize,
}

impl BatchSize {
    /// The largest batch of events: larger ones save hardly any time, and their first event waits
    /// for the last one.
    pub const MOST: usize = 100;

    /// The largest batch of a pass at full speed, which has a commit and a flush a batch: half of what
    /// differs in one of its steps, mostly.
    pub const MOST_OF_A_PASS: usize = 400;

    /// Nothing is known of the server yet, and its first call makes plans.
    const FIRST: usize = 10;

    /// Begins small, and grows to `most`.
    #[must_use]
    pub fn up_to(most: usize) -> Self {
        Self {
            size: Arc::new(AtomicUsize::new(Self::FIRST.min(most))),
            most,
        }
    }

    /// How many runs the next call may judge.
    #[must_use]
    pub fn get(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    /// How many that can become.
    #[must_use]
    pub fn most(&self) -> usize {
        self.most
    }

    /// Learns that a call for so many runs held their rows for so long. Grows by doubling, and
    /// shrinks at once to what would have fitted.
    pub fn learn(&self, taken: usize, held: Duration) {
        let size = self.get();
        let fitting = match held.as_micros() {
            0 => self.most,
            held => usize::try_from(taken as u128 * HOLD.as_micros() / held).unwrap_or(self.most),
        };
        let next = if held > HOLD {
            fitting.min(size)
        } else if taken >= size {
            fitting.clamp(size, size * 2)
        } else {
            size
        };
        self.size.store(next.clamp(1, self.most), Ordering::Relaxed);
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
        // What fits already is not grown into what does not.
        size.learn(25, Duration::from_millis(50));
        assert_eq!(size.get(), 25);
        // A few runs say nothing of many.
        size.learn(3, Duration::from_millis(1));
        assert_eq!(size.get(), 25);
        // One run that takes too long by itself is still a batch.
        size.learn(1, Duration::from_secs(1));
        assert_eq!(size.get(), 1);
        size.learn(1, Duration::ZERO);
        assert_eq!(size.get(), 2);
    }
}
