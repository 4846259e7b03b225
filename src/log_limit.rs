//! Bounds the rate of a log line that data can trigger.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines in one window.
const LINES: u32 = 10;

/// The length of a window.
const WINDOW: Duration = Duration::from_secs(60);

/// Allows [`LINES`] lines in each [`WINDOW`].
#[derive(Debug)]
pub(crate) struct LogLimit(Mutex<Window>);

#[derive(Debug)]
struct Window {
    began: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl LogLimit {
    /// No line yet.
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Window {
            began: None,
            lines: 0,
            suppressed: 0,
        }))
    }

    /// Whether a line may be logged now; if so, how many lines were suppressed since the last one.
    pub(crate) fn allow(&self) -> Option<u64> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.began.is_none_or(|began| now - began >= WINDOW) {
            window.began = Some(now);
            window.lines = 0;
        }
        if window.lines < LINES {
            window.lines += 1;
            Some(std::mem::take(&mut window.suppressed))
        } else {
            window.suppressed += 1;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_allows_some_lines_and_the_next_one_counts_the_suppressed() {
        let (limit, start) = (LogLimit::new(), Instant::now());
        for _ in 0..LINES {
            assert_eq!(limit.allow_at(start), Some(0));
        }
        assert_eq!(limit.allow_at(start), None);
        assert_eq!(limit.allow_at(start + WINDOW / 2), None);
        assert_eq!(limit.allow_at(start + WINDOW), Some(2));
        assert_eq!(limit.allow_at(start + WINDOW), Some(0));
    }
}
