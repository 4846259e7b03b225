//! Detects steps of the database's clock.
//!
//! Compares it with the local monotonic one. The listener watches it with each probe, and the sweeper
//! with each scan: a step that the sweeper alone has seen has already decided statuses.

use std::time::Instant;

/// A difference of the two clocks that counts as a step, seconds.
const STEP_SECS: f64 = 0.5;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ClockWatch {
    seen: Option<Seen>,
}

/// The database's clock between two local instants.
#[derive(Debug, Clone, Copy)]
struct Seen {
    secs: f64,
    sent: Instant,
    received: Instant,
}

impl ClockWatch {
    /// By how many seconds the clock stepped since the last call, if it did. The database read its
    /// clock between `sent` and `received`; a late answer alone does not count as a step.
    pub(super) fn step(&mut self, secs: f64, sent: Instant, received: Instant) -> Option<f64> {
        let before = self.seen.replace(Seen {
            secs,
            sent,
            received,
        })?;
        let least = before.secs
            + sent
                .saturating_duration_since(before.received)
                .as_secs_f64();
        let most = before.secs
            + received
                .saturating_duration_since(before.sent)
                .as_secs_f64();
        let step = if secs < least {
            secs - least
        } else {
            (secs - most).max(0.0)
        };
        (step.abs() > STEP_SECS).then_some(step)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_that_keeps_pace_does_not_step_and_one_that_jumps_does() {
        let mut watch = ClockWatch::default();
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        assert_eq!(watch.step(1000.0, at(0), at(0)), None);
        assert_eq!(watch.step(1001.0, at(1), at(1)), None);
        let forward = watch.step(1092.0, at(2), at(2)).expect("a step ahead");
        assert!((89.0..=91.0).contains(&forward), "{forward}");
        let back = watch.step(1003.0, at(3), at(3)).expect("a step back");
        assert!((-91.0..=-89.0).contains(&back), "{back}");
        // The database reads its clock at any time before a late answer.
        assert_eq!(watch.step(1004.0, at(4), at(14)), None);
        assert_eq!(watch.step(1015.0, at(15), at(15)), None);
        assert_eq!(watch.step(1026.0, at(16), at(26)), None);
        assert_eq!(watch.step(1027.0, at(27), at(27)), None);
    }
}
