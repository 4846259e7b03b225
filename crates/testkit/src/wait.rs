//! Waits until a condition holds, with a deadline and a message that says what did not happen.
//!
//! Tests poll only through this module; fixtures that start programs of their own may not. Promises
//! to fail at the deadline even when the condition itself hangs, and at once when a daemon that the
//! test has started dies (see [`crate::process`]). Called by every test that expects something of a
//! running process.

use std::cell::RefCell;
use std::fmt::Debug;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::process;

const INTERVAL: Duration = Duration::from_millis(10);

/// Waits until the condition holds. `what` ends the sentence "not within 5s: ...".
#[track_caller]
pub fn eventually(
    deadline: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> bool,
) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let waited = poll(deadline, async || condition().await.then_some(())).await;
        assert!(
            waited.is_some(),
            "{place}: not within {deadline:?}: {what}\n{}",
            process::tails()
        );
    }
}

/// Waits until the value is the expected one; the failure shows the last value seen.
#[track_caller]
pub fn eventually_eq<T: PartialEq + Debug>(
    deadline: Duration,
    what: &str,
    expected: T,
    mut value: impl AsyncFnMut() -> T,
) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let last = RefCell::new(None);
        let waited = poll(deadline, async || {
            let seen = value().await;
            let reached = seen == expected;
            last.replace(Some(seen));
            reached.then_some(())
        })
        .await;
        let last = last.borrow();
        assert!(
            waited.is_some(),
            "{place}: not within {deadline:?}: {what}: expected {expected:?}, last saw {last:?}\n{}",
            process::tails()
        );
    }
}

/// Waits until there is a value, and returns it.
#[track_caller]
pub fn eventually_some<T>(
    deadline: Duration,
    what: &str,
    value: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    let place = std::panic::Location::caller();
    async move {
        match poll(deadline, value).await {
            Some(value) => value,
            None => panic!(
                "{place}: not within {deadline:?}: {what}\n{}",
                process::tails()
            ),
        }
    }
}

/// Awaits a future that completes by itself, with the same deadline, text and watch over the
/// daemons.
#[track_caller]
pub fn within<T>(
    deadline: Duration,
    what: &str,
    future: impl Future<Output = T>,
) -> impl Future<Output = T> {
    let place = std::panic::Location::caller();
    async move {
        let mut future = pin!(future);
        let end = Instant::now() + deadline;
        loop {
            if let Ok(value) = timeout(INTERVAL, &mut future).await {
                return value;
            }
            process::check_all();
            assert!(
                Instant::now() < end,
                "{place}: not within {deadline:?}: {what}\n{}",
                process::tails()
            );
        }
    }
}

/// Polls until there is a value; none at the deadline. For callers with a failure text of their
/// own.
pub async fn poll<T>(deadline: Duration, mut attempt: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        process::check_all();
        let mut attempted = pin!(attempt());
        loop {
            match timeout(INTERVAL, &mut attempted).await {
                Ok(Some(value)) => return Some(value),
                Ok(None) => break,
                // The attempt hangs: continue it, but notice a dead daemon and the deadline.
                Err(_) => process::check_all(),
            }
            if Instant::now() > end {
                return None;
            }
        }
        if Instant::now() > end {
            return None;
        }
        sleep(INTERVAL).await;
    }
}
