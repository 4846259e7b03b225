//! The wait before a retry: exponential, with jitter, up to a ceiling.

use std::time::Duration;

use rand::RngExt as _;

/// Doubles from `first` to `ceiling`; every wait is drawn from the upper half of its step, so that
/// daemons that lost the same server do not reconnect at the same time.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    ceiling: Duration,
    failures: u32,
}

impl Backoff {
    /// A back-off without a failure.
    #[must_use]
    pub fn new(first: Duration, ceiling: Duration) -> Self {
        Self {
            first,
            ceiling,
            failures: 0,
        }
    }

    /// The next wait; counts one more failure.
    pub fn next_wait(&mut self) -> Duration {
        let step = self
            .first
            .saturating_mul(1 << self.failures.min(20))
            .min(self.ceiling);
        self.failures = self.failures.saturating_add(1);
        step.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// True before the first failure, which is the one to log.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.failures == 0
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_ceiling_and_start_again_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        for step in [100, 200, 400, 800, 1600, 2000, 2000] {
            let wait = backoff.next_wait().as_millis();
            assert!(
                (step / 2..=step).contains(&wait),
                "{wait} ms is not in the upper half of {step} ms"
            );
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }
}
