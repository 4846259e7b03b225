//! Load generators: open loop (calls at a fixed rate) and closed loop (each session calls again at
//! once).
//!
//! Owns the pacing. Everything runs on the caller's task, so that the load generator uses little of
//! the processor time that the measured processes need. A failed call ends the load with its error.

use std::cell::Cell;
use std::time::Duration;

use anyhow::Result;
use futures_util::future::try_join_all;
use tokio::time::{Instant, sleep_until};

/// Calls `job` `count` times, with a free session and the index of the call. Call n is due n/`rate`
/// seconds after the start, and is late only if no session is free. Returns the calls per second
/// that were reached.
pub(crate) async fn open_loop<S>(
    sessions: &[S],
    rate: f64,
    count: usize,
    job: impl AsyncFn(&S, usize) -> Result<()>,
) -> Result<f64> {
    let next = Cell::new(0);
    let start = Instant::now();
    let (next, job) = (&next, &job);
    try_join_all(sessions.iter().map(|session| async move {
        loop {
            let index = next.get();
            if index >= count {
                return anyhow::Ok(());
            }
            next.set(index + 1);
            sleep_until(start + due(index, rate)).await;
            job(session, index).await?;
        }
    }))
    .await?;
    Ok(per_second(count, start.elapsed()))
}

/// Calls `job` from every session without a pause for `duration`; returns the calls per second.
pub(crate) async fn closed_loop<S>(
    sessions: &[S],
    duration: Duration,
    job: impl AsyncFn(&S, usize) -> Result<()>,
) -> Result<f64> {
    let next = Cell::new(0);
    let start = Instant::now();
    let end = start + duration;
    let (next, job) = (&next, &job);
    try_join_all(sessions.iter().map(|session| async move {
        while Instant::now() < end {
            let index = next.get();
            next.set(index + 1);
            job(session, index).await?;
        }
        anyhow::Ok(())
    }))
    .await?;
    Ok(per_second(next.get(), start.elapsed()))
}

#[expect(clippy::cast_precision_loss, reason = "loads are far below 2^52 calls")]
fn due(index: usize, rate: f64) -> Duration {
    Duration::from_secs_f64(index as f64 / rate)
}

#[expect(clippy::cast_precision_loss, reason = "loads are far below 2^52 calls")]
fn per_second(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}
