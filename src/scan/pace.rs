//! How fast a scan goes.

use std::time::Duration;

use crate::signals::Signals;
use crate::store::Compared;

/// Runs in one batch of the daemon's scans: about ten milliseconds of the server's time.
pub const BATCH: i32 = 2_000;

/// Maximum statuses written per second if upstream's triggers send a notification for each write.
pub const MAX_WRITES_WITH_UPSTREAM_NOTIFY: f64 = 200.0;

/// While events arrive fast, a scan that yields goes slower by this factor.
const YIELD_FACTOR: u32 = 4;

/// The longest pause that follows from the time that a batch took. That is the time of one batch on a
/// machine that may just have been busy: without this limit a batch of one second would delay the next
/// by minutes.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// The limits of a scan; the strictest applies. By default there are none.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Statements at the same time. With one, a scan uses at most one core of the server; with
    /// more, the next batch is compared while the last one is corrected.
    pub concurrency: usize,
    /// Maximum runs compared per second.
    pub max_rate: Option<f64>,
    /// Maximum statuses written per second.
    pub max_writes: Option<f64>,
    /// The pause after each batch, as a multiple of the time that the batch took.
    pub pause_parts: f64,
    /// Go slower while these signals are busy.
    pub yield_to: Option<Signals>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            concurrency: 1,
            max_rate: None,
            max_writes: None,
            pause_parts: 0.0,
            yield_to: None,
        }
    }
}

impl Pace {
    /// How long to pause after a batch that took this long.
    pub(super) fn pause(&self, took: Duration, batch: &Compared, written: i64) -> Duration {
        let pause = self.pause_for(took, batch.compared, written);
        let busy = self.yield_to.as_ref().is_some_and(Signals::is_busy);
        if busy {
            (pause * YIELD_FACTOR).min(pause.max(MAX_PAUSE))
        } else {
            pause
        }
    }

    fn pause_for(&self, took: Duration, compared: i64, written: i64) -> Duration {
        #[expect(
            clippy::cast_precision_loss,
            reason = "the counts of a batch are small"
        )]
        let at_rate = |count: i64, rate: Option<f64>| {
            rate.map_or(Duration::ZERO, |rate| {
                Duration::from_secs_f64(count as f64 / rate).saturating_sub(took)
            })
        };
        took.mul_f64(self.pause_parts)
            .min(MAX_PAUSE)
            .max(at_rate(compared, self.max_rate))
            .max(at_rate(written, self.max_writes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_pauses_for_the_strictest_of_its_limits() {
        let pace = Pace {
            max_rate: Some(1_000.0),
            max_writes: Some(10.0),
            pause_parts: 2.0,
            ..Pace::default()
        };
        let took = Duration::from_millis(100);
        assert_eq!(pace.pause_for(took, 0, 0), Duration::from_millis(200));
        assert_eq!(pace.pause_for(took, 1_000, 0), Duration::from_millis(900));
        assert_eq!(
            pace.pause_for(took, 1_000, 50),
            Duration::from_millis(4_900)
        );
        let long = Duration::from_secs(60);
        assert_eq!(pace.pause_for(long, 0, 0), MAX_PAUSE);
        assert_eq!(pace.pause_for(long, 1_000_000, 0), Duration::from_secs(940));
    }
}
