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
pub struct BatchSize(Arc<AtomicUsize>);

impl BatchSize {
    /// The largest batch: larger ones save nothing more.
    pub const MOST: usize = 100;

    /// Nothing is known of the server yet, and its first call makes plans.
    const FIRST: usize = 10;

    /// How many runs the next call may judge.
    #[must_use]
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Learns that a call for so many runs held their rows for so long. Grows by doubling, and
    /// shrinks at once to what would have fitted.
    pub fn learn(&self, taken: usize, held: Duration) {
        let size = self.get();
        let fitting = match held.as_micros() {
            0 => Self::MOST,
            held => usize::try_from(taken as u128 * HOLD.as_micros() / held).unwrap_or(Self::MOST),
        };
        let next = if held > HOLD {
            fitting.min(size)
        } else if taken >= size {
            fitting.clamp(size, size * 2)
        } else {
            size
        };
        self.0.store(next.clamp(1, Self::MOST), Ordering::Relaxed);
    }
}

impl Default for BatchSize {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(Self::FIRST)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_while_they_are_quick_and_shrink_at_once_to_what_fits() {
        let size = BatchSize::default();
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
