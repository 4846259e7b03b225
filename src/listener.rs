//! Holds the LISTEN session: hears of new events, wins or loses the lead, and proves it is alive.
//!
//! Promises that a session that stopped answering is noticed within [`PROBE_INTERVAL`] plus
//! [`PROBE_DEADLINE`], and that everything committed while nobody listened is looked for after
//! every (re)connect. The task that reads notifications does nothing else. Called by the daemon.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::AsyncMessage;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::backoff::Backoff;
use crate::error::{Error, chain};
use crate::metrics::Metrics;
use crate::pg::{Connector, Db, Purpose, SHORT, SessionMode, Traffic, settings};
use crate::signals::{Alarm, Lead, Wake};

/// How often the session is asked for a sign of life, and a follower tries for the lead.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// How long the answer may take; one missed deadline is a reconnect.
pub const PROBE_DEADLINE: Duration = Duration::from_millis(1500);

/// A step of the database's clock against ours by more than this moves deadlines.
const CLOCK_STEP_SECS: f64 = 0.5;

/// From this usage on, writers are about to stop notifying: the worker is called on each probe.
const NOTIFY_QUEUE_FULL: f64 = 0.4;

const PROBE: &str = "\
-- listener.probe
select extract(epoch from clock_timestamp())::float8 as clock_secs,
       pg_notification_queue_usage() as queue_usage,
       case when $1 then true else pg_try_advisory_lock(1937011049, 1) end as leading";

const CLOCK: &str = "\
-- listener.clock
select extract(epoch from clock_timestamp())::float8 as clock_secs,
       pg_notification_queue_usage() as queue_usage,
       true as leading";

/// See the module.
#[derive(Debug)]
pub struct Listener {
    /// Opens the session.
    pub connector: Connector,
    /// For probes where sessions are not to be had.
    pub db: Db,
    /// Where the lead is published.
    pub lead: watch::Sender<Lead>,
    /// Called for every notification and after every connect.
    pub wake: Wake,
    /// Set off when the database's clock steps.
    pub alarm: Alarm,
    /// What it counts.
    pub metrics: Metrics,
}

impl Listener {
    /// Runs until `stop`; a lost session is opened again, with back-off.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
        let mut clock = ClockWatch::default();
        loop {
            let session = async {
                if self.db.mode() == SessionMode::Transaction {
                    self.without_session(&mut backoff, &mut clock).await
                } else {
                    self.session(&mut backoff, &mut clock).await
                }
            };
            let fresh = tokio::select! {
                () = stop.cancelled() => break,
                ended = session => {
                    let Err(error) = ended;
                    let fresh = backoff.is_fresh();
                    // One session that the server ended may be the only one; silence, or no other
                    // session to be had, is a database that does not answer.
                    if !fresh || matches!(error, Error::Timeout { .. }) {
                        self.metrics.up.set(0);
                    }
                    if fresh {
                        tracing::warn!(error = chain(&error), "listener session lost");
                    } else {
                        tracing::debug!(error = chain(&error), "listener session not to be had");
                    }
                    fresh
                }
            };
            self.step_down();
            if fresh {
                self.metrics.listener_reconnects_total.inc();
            }
            let wait = backoff.next_wait();
            if stop
                .run_until_cancelled(tokio::time::sleep(wait))
                .await
                .is_none()
            {
                break;
            }
        }
        self.step_down();
    }

    fn step_down(&self) {
        self.metrics.listener_connected.set(0);
        self.metrics.leader.set(0);
        if self.lead.borrow().leading {
            tracing::info!("no longer leading");
        }
        self.lead.send_modify(|lead| lead.leading = false);
    }

    fn take_lead(&self) {
        self.lead.send_modify(|lead| {
            lead.leading = true;
            lead.session += 1;
        });
        self.metrics.leader.set(1);
        tracing::info!("leading");
        self.wake.call();
    }

    async fn session(
        &self,
        backoff: &mut Backoff,
        clock: &mut ClockWatch,
    ) -> Result<std::convert::Infallible, Error> {
        let (client, traffic) = timeout(SHORT, self.connector.connect_bare())
            .await
            .map_err(|_| Error::Timeout {
                statement: "listener.connect",
                after: SHORT,
            })??;
        let mut reader = AbortOnDropHandle::new(tokio::spawn(forward(
            traffic,
            self.wake.clone(),
            self.metrics.clone(),
        )));
        let arm = format!("{}listen status_indexer;", settings(Purpose::Listen));
        bounded("listener.listen", client.batch_execute(&arm)).await?;
        self.metrics.listener_connected.set(1);
        if !backoff.is_fresh() {
            tracing::info!("listener session is back");
        }
        // Whatever was committed before the session listened is in the queue and nowhere else.
        self.wake.call();

        let mut ticks = interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leading = false;
        loop {
            // Losing the session is losing the lead, at once.
            tokio::select! {
                _ = ticks.tick() => {}
                _ = &mut reader => {
                    return Err(Error::Connect("the server closed the connection".into()));
                }
            }
            let sent = Instant::now();
            let row = bounded(
                "listener.probe",
                client.query_typed_one(PROBE, &[(&leading, Type::BOOL)]),
            )
            .await?;
            backoff.reset();
            let answer = Probe::read(&row)?;
            self.observe(&answer, sent, clock);
            if answer.leading && !leading {
                self.take_lead();
            }
            leading = answer.leading;
        }
    }

    /// Behind a transaction pooler nobody leads and everybody works: that costs, and is correct.
    async fn without_session(
        &self,
        backoff: &mut Backoff,
        clock: &mut ClockWatch,
    ) -> Result<std::convert::Infallible, Error> {
        let mut ticks = interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let sent = Instant::now();
            let row = self.db.query_one(CLOCK, &[], SHORT).await?;
            backoff.reset();
            self.observe(&Probe::read(&row)?, sent, clock);
            if !self.lead.borrow().leading {
                self.take_lead();
            }
        }
    }

    fn observe(&self, probe: &Probe, sent: Instant, clock: &mut ClockWatch) {
        self.metrics.up.set(1);
        self.metrics.notify_queue_usage_ratio.set(probe.queue_usage);
        if probe.queue_usage >= NOTIFY_QUEUE_FULL {
            self.wake.call();
        }
        if let Some(step_secs) = clock.step(probe.clock_secs, sent) {
            tracing::warn!(
                step_secs,
                "the database's clock stepped; all deadlines are looked at again"
            );
            self.alarm.all();
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

/// Compares the database's clock with our monotonic one, to see it step.
#[derive(Debug, Default)]
struct ClockWatch {
    /// The database's clock at some moment of ours.
    seen: Option<(f64, Instant)>,
}

impl ClockWatch {
    /// By how many seconds the clock stepped since the last look, if it did. `sent` is when the
    /// question left; a late answer alone is no step.
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

/// Reads the session's traffic and turns notifications into calls, until the connection ends.
async fn forward(mut traffic: Traffic, wake: Wake, metrics: Metrics) {
    loop {
        match poll_fn(|context| traffic.poll_message(context)).await {
            Some(Ok(AsyncMessage::Notification(_))) => {
                metrics.notifications_total.inc();
                wake.call();
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::debug!(error = chain(&error), "listener connection broke");
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
