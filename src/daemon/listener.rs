//! Holds the LISTEN session: receives notifications, takes part in the election, proves it is alive.
//!
//! Promises that a session that stopped answering is detected within [`PROBE_INTERVAL`] plus
//! [`PROBE_DEADLINE`], and that the queue is drained after every (re)connect, because notifications
//! sent meanwhile are lost. The task that reads notifications does nothing else. Called by the daemon.

use std::convert::Infallible;
use std::future::poll_fn;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::AsyncMessage;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::leadership::Leadership;
use crate::backoff::Backoff;
use crate::error::{Error, chain};
use crate::metrics::Metrics;
use crate::pg::{
    CHANNEL, Connector, Db, LEADER_LOCK, LOCK_CLASS, SHORT, SessionMode, SessionProfile, Traffic,
};
use crate::signals::{Signals, Wakeup};

/// How often the session is probed, and a follower tries to become leader.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Limit on one probe; a probe that exceeds it ends the session.
const PROBE_DEADLINE: Duration = Duration::from_millis(1500);

/// A step of the database's clock against the local one by more than this moves deadlines.
const CLOCK_STEP_SECS: f64 = 0.5;

/// From this usage on, writers are about to stop notifying: each probe wakes the worker.
const NOTIFY_QUEUE_FULL: f64 = 0.4;

const PROBE: &str = "\
-- listener.probe
select extract(epoch from clock_timestamp())::float8 as clock_secs,
       pg_notification_queue_usage() as queue_usage,
       case when $1 then true else pg_try_advisory_lock($2, $3) end as leading";

const CLOCK: &str = "\
-- listener.clock
select extract(epoch from clock_timestamp())::float8 as clock_secs,
       pg_notification_queue_usage() as queue_usage,
       true as leading";

/// See the module.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Opens the session.
    pub(crate) connector: Connector,
    /// For probes where connections are not sessions.
    pub(crate) db: Db,
    /// The leadership that the session wins and loses.
    pub(crate) leadership: Leadership,
    /// Wakes the worker for every notification and after every connect, and the sweeper when the
    /// database's clock steps.
    pub(crate) signals: Signals,
    /// The metrics to count in.
    pub(crate) metrics: Metrics,
}

impl Listener {
    /// Runs until `stop`; a lost session is opened again, with back-off.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
        let mut clock = ClockWatch::default();
        let mut reason = String::new();
        loop {
            let session = async {
                if self.db.mode() == SessionMode::Transaction {
                    self.without_session(&mut backoff, &mut clock).await
                } else {
                    self.session(&mut backoff, &mut clock).await
                }
            };
            let Err(error) = tokio::select! {
                () = stop.cancelled() => break,
                ended = session => ended,
            };
            self.report(&error, backoff.is_fresh(), &mut reason);
            self.resign();
            let wait = backoff.next_wait();
            if stop
                .run_until_cancelled(tokio::time::sleep(wait))
                .await
                .is_none()
            {
                break;
            }
        }
        self.resign();
    }

    /// Reports the end of a session; `established` if the session had answered before.
    /// Why it cannot be opened again is logged when the reason changes.
    fn report(&self, error: &Error, established: bool, reason: &mut String) {
        // The server may have ended this one session only. Silence, or a session that cannot be
        // opened again, means that the database does not answer.
        if !established || matches!(error, Error::Timeout { .. }) {
            self.metrics.up.set(0);
        }
        if established {
            self.metrics.listener_reconnects_total.inc();
            tracing::warn!(error = chain(error), "LISTEN connection lost");
            reason.clear();
        } else {
            let text = chain(error);
            if text != *reason {
                tracing::warn!(error = text, "cannot open LISTEN connection");
                *reason = text;
            }
        }
    }

    fn resign(&self) {
        self.metrics.listener_connected.set(0);
        self.metrics.leader.set(0);
        if self.leadership.resign() {
            tracing::info!("no longer leading");
        }
    }

    fn lead(&self) {
        self.leadership.begin();
        self.metrics.leader.set(1);
        tracing::info!("leading");
        self.signals.wakeup.notify();
    }

    async fn session(
        &self,
        backoff: &mut Backoff,
        clock: &mut ClockWatch,
    ) -> Result<Infallible, Error> {
        let (client, traffic) = self.connector.connect_bare().await?;
        let mut reader = AbortOnDropHandle::new(tokio::spawn(forward(
            traffic,
            self.signals.wakeup.clone(),
            self.metrics.clone(),
        )));
        let listen = format!("{}listen {CHANNEL};", SessionProfile::Listener.session());
        bounded("listener.listen", client.batch_execute(&listen)).await?;
        self.metrics.listener_connected.set(1);
        if !backoff.is_fresh() {
            tracing::info!("LISTEN connection restored");
        }
        // Events committed before the session listened are in the queue, and nobody notified of them.
        self.signals.wakeup.notify();

        let mut ticks = interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leading = false;
        loop {
            // The lock is released with the session, so the leadership ends at once.
            tokio::select! {
                _ = ticks.tick() => {}
                _ = &mut reader => {
                    return Err(Error::Connect("the server closed the connection".into()));
                }
            }
            let sent = Instant::now();
            let params = [
                (&leading as _, Type::BOOL),
                (&LOCK_CLASS as _, Type::INT4),
                (&LEADER_LOCK as _, Type::INT4),
            ];
            let row = bounded("listener.probe", client.query_typed_one(PROBE, &params)).await?;
            backoff.reset();
            let answer = Probe::read(&row)?;
            self.observe(&answer, sent, clock);
            if answer.leading && !leading {
                self.lead();
            }
            leading = answer.leading;
        }
    }

    /// Behind a transaction pooler there is no lock to hold: every daemon works, which costs more and
    /// is correct.
    async fn without_session(
        &self,
        backoff: &mut Backoff,
        clock: &mut ClockWatch,
    ) -> Result<Infallible, Error> {
        let mut ticks = interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let sent = Instant::now();
            let row = self.db.query_one(CLOCK, &[], SHORT).await?;
            backoff.reset();
            self.observe(&Probe::read(&row)?, sent, clock);
            if !self.leadership.is_leading() {
                self.lead();
            }
        }
    }

    fn observe(&self, probe: &Probe, sent: Instant, clock: &mut ClockWatch) {
        self.metrics.up.set(1);
        self.metrics.notify_queue_usage_ratio.set(probe.queue_usage);
        if probe.queue_usage >= NOTIFY_QUEUE_FULL {
            self.signals.wakeup.notify();
        }
        if let Some(step_secs) = clock.step(probe.clock_secs, sent) {
            tracing::warn!(
                step_secs,
                "the database's clock stepped; checking all deadlines again"
            );
            self.signals.deadlines.rescan_all();
        }
    }
}

struct Probe {
    clock_secs: f64,
    queue_usage: f64,
    leading: bool,
}

impl Probe {
    fn read(row: &tokio_postgres::Row) -> Result<Self, Error> {
        let read = || {
            Ok(Self {
                clock_secs: row.try_get("clock_secs")?,
                queue_usage: row.try_get("queue_usage")?,
                leading: row.try_get("leading")?,
            })
        };
        read().map_err(|source: tokio_postgres::Error| Error::Answer {
            statement: "listener.probe",
            source: source.into(),
        })
    }
}

/// Compares the database's clock with the local monotonic one, to detect steps.
#[derive(Debug, Default)]
struct ClockWatch {
    /// The database's clock at a local instant.
    seen: Option<(f64, Instant)>,
}

impl ClockWatch {
    /// By how many seconds the clock stepped since the last probe, if it did. `sent` is when the probe
    /// was sent; a late answer alone does not count as a step.
    fn step(&mut self, clock_secs: f64, sent: Instant) -> Option<f64> {
        let now = Instant::now();
        let (before_secs, before) = self.seen.replace((clock_secs, now))?;
        let earliest = before_secs + (sent - before).as_secs_f64();
        let latest = before_secs + (now - before).as_secs_f64();
        let step = if clock_secs < earliest {
            clock_secs - earliest
        } else {
            (clock_secs - latest).max(0.0)
        };
        (step.abs() > CLOCK_STEP_SECS).then_some(step)
    }
}

/// Reads the session's traffic and wakes the worker for each notification, until the connection ends.
async fn forward(mut traffic: Traffic, wakeup: Wakeup, metrics: Metrics) {
    loop {
        match poll_fn(|context| traffic.poll_message(context)).await {
            Some(Ok(AsyncMessage::Notification(_))) => {
                metrics.notifications_total.inc();
                wakeup.notify();
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::debug!(error = chain(&error), "LISTEN connection broke");
                return;
            }
            None => return,
        }
    }
}

async fn bounded<T>(
    statement: &'static str,
    call: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Error> {
    match timeout(PROBE_DEADLINE, call).await {
        Ok(answer) => answer.map_err(|source| Error::Postgres { statement, source }),
        Err(_) => Err(Error::Timeout {
            statement,
            after: PROBE_DEADLINE,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_keeps_pace_does_not_step_and_one_that_jumps_does() {
        let mut watch = ClockWatch::default();
        let start = Instant::now();
        assert_eq!(watch.step(1000.0, start), None);
        let elapsed = start.elapsed().as_secs_f64();
        assert_eq!(watch.step(1000.0 + elapsed, Instant::now()), None);
        let forward = watch.step(1090.0, Instant::now()).expect("a step ahead");
        assert!((89.0..=90.0).contains(&forward), "{forward}");
        let back = watch.step(1000.0, Instant::now()).expect("a step back");
        assert!((-91.0..=-89.0).contains(&back), "{back}");
    }
}
