//! Holds the LISTEN session: receives notifications, takes part in the election, probes the server.
//!
//! The session saves work, and correctness does not depend on it: while it cannot be opened or
//! kept, the listener probes through the pool, and the worker polls. It may lead to the server by
//! another connection string than the pool; then it counts only while both lead to the same database.
//! Promises that a session that stopped answering is detected within the limit on a probe; that the
//! queue is drained after every (re)connect, because notifications sent meanwhile are lost; that a
//! leader that stopped renewing its heartbeat is replaced after five seconds while the pool of any
//! other daemon works; and that a leader that stops wakes its followers. Called by the daemon.

mod probe;
mod session;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::clock_watch::ClockWatch;
use super::health::{Health, Stage};
use super::leadership::Leadership;
use crate::error::{Error, Remedy, chain};
use crate::metrics::{Condition, Metrics};
use crate::pg::{Connector, Db, SessionMode};
use crate::signals::Signals;
pub(crate) use probe::LEADER_SILENCE;
use probe::{Cause, Probe};
use session::Session;

/// How often the session is probed, and a follower tries to become leader.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// A daemon that has had no session for this long probes through the pool.
const WITHOUT_SESSION: Duration = Duration::from_secs(3);

/// How often a session by a connection string of its own is proved to lead to the pool's database.
const MARK_INTERVAL: Duration = Duration::from_secs(10);

/// If no probe has succeeded for this long, no leader is known.
const LEADERLESS_AFTER: Duration = Duration::from_secs(10);

/// From this usage of the notification queue on, each probe wakes the worker, because writers stop
/// notifying at one half.
pub(crate) const NOTIFY_QUEUE_FULL: f64 = 0.4;

/// See the module.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Opens the session, unless there is a connection string for it.
    pub(crate) connector: Connector,
    /// Opens the session by a connection string of its own, which leads around a pooler.
    pub(crate) direct: Option<Connector>,
    /// For probes while the session is missing.
    pub(crate) db: Db,
    /// The leadership that this daemon wins and loses.
    pub(crate) leadership: Leadership,
    /// Wakes the worker for every notification and after every connect, and the sweeper when the
    /// database's clock steps.
    pub(crate) signals: Signals,
    /// Where the lack of a leader is reported.
    pub(crate) health: Health,
    /// The metrics to count in.
    pub(crate) metrics: Metrics,
}

/// The state that both kinds of probes share.
#[derive(Debug)]
struct Probes(Mutex<Seen>);

/// What the probes have seen so far.
#[derive(Debug)]
struct Seen {
    clock: ClockWatch,
    /// The time since which the session is missing; none while there is one.
    unlistened_since: Option<Instant>,
    /// When a leader was last known to work: this daemon or another.
    led_at: Instant,
}

impl Probes {
    fn new() -> Self {
        Self(Mutex::new(Seen {
            clock: ClockWatch::default(),
            unlistened_since: Some(Instant::now()),
            led_at: Instant::now(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_listening(&self, listening: bool) {
        let mut seen = self.lock();
        seen.unlistened_since = if listening {
            None
        } else {
            seen.unlistened_since.or_else(|| Some(Instant::now()))
        };
    }

    fn unlistened_for(&self) -> Option<Duration> {
        self.lock().unlistened_since.map(|since| since.elapsed())
    }
}

impl Listener {
    /// Runs until `stop`; a lost session is opened again, with back-off.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let probes = Probes::new();
        tokio::select! {
            () = self.keep_session(&probes, &stop) => {}
            never = self.probe_pool(&probes) => match never {},
        }
        self.metrics.listener_connected.set(0);
        self.resign();
    }

    /// Opens the session, and opens it again whenever it ends, until `stop`.
    async fn keep_session(&self, probes: &Probes, stop: &CancellationToken) {
        if self.is_pooled() {
            // A transaction pooler has no sessions.
            return stop.cancelled().await;
        }
        let mut stage = Stage::optional(
            "listener",
            Duration::from_millis(100),
            Duration::from_secs(3),
        );
        let mut proved = false;
        loop {
            let opened = stop
                .run_until_cancelled(Session::open(self, &mut proved))
                .await;
            let error = match opened {
                None => return,
                Some(Err(error)) => error,
                Some(Ok(session)) => match self.hold(session, &mut stage, probes, stop).await {
                    Ok(()) => return,
                    Err(error) => error,
                },
            };
            let wait = self.session_lost(&error, &mut stage, probes);
            let sleep = tokio::time::sleep(wait);
            if stop.run_until_cancelled(sleep).await.is_none() {
                return;
            }
        }
    }

    /// The session could not be opened or has ended; returns how long to wait before the next attempt.
    fn session_lost(&self, error: &Error, stage: &mut Stage, probes: &Probes) -> Duration {
        if self.metrics.listener_connected.get() == 1 {
            self.metrics.listener_connected.set(0);
            self.metrics.listener_reconnects_total.inc();
            // The server released the lock with the session.
            self.resign();
        }
        probes.set_listening(false);
        if matches!(error, Error::Timeout { .. }) && self.direct.is_none() {
            self.metrics.up.set(0);
        }
        let what = if stage.is_failing() {
            "cannot open LISTEN connection"
        } else {
            "LISTEN connection lost"
        };
        stage.failed(error, what)
    }

    /// Whether LISTEN and session locks do not work: all connections go through a transaction pooler.
    fn is_pooled(&self) -> bool {
        self.db.mode() == SessionMode::Transaction && self.direct.is_none()
    }

    /// Probes the session until it ends. Releases the lock on `stop`.
    async fn hold(
        &self,
        mut session: Session,
        stage: &mut Stage,
        probes: &Probes,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let probing = self.probe_session(&mut session, stage, probes);
        if let Some(Err(error)) = stop.run_until_cancelled(probing).await {
            return Err(error);
        }
        // The term has ended with `stop`.
        if session.locked {
            session.release().await;
        }
        Ok(())
    }

    async fn probe_session(
        &self,
        session: &mut Session,
        stage: &mut Stage,
        probes: &Probes,
    ) -> Result<Infallible, Error> {
        let mark = session.mark.take();
        let mut elsewhere = pin!(async {
            match &mark {
                Some(mark) => mark.watch(&self.db, MARK_INTERVAL).await,
                None => std::future::pending().await,
            }
        });
        let mut ticks = interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // The lock is released with the session, so the leadership ends at once.
            let cause = tokio::select! {
                _ = ticks.tick() => Cause::Interval,
                () = session.released.notified(), if !session.locked => Cause::Release,
                error = &mut elsewhere => return Err(error),
                _ = &mut session.reader => {
                    return Err(Error::Connect("the server closed the connection".into()));
                }
            };
            let sent = Instant::now();
            let probe = session.probe().await?;
            stage.succeeded();
            if self.metrics.listener_connected.get() == 0 {
                self.metrics.listener_connected.set(1);
                probes.set_listening(true);
                // Events committed before LISTEN took effect are in the queue without a
                // notification.
                self.signals.wakeup.notify();
            }
            self.observe(&probe, sent, probes);
            self.take_part(&probe, false, cause, probes);
        }
    }

    /// Probes through the pool while the session is missing. Behind a transaction pooler it always
    /// is, and every daemon leads: that costs more, and the statuses are correct.
    async fn probe_pool(&self, probes: &Probes) -> Infallible {
        let mut ticks = interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let pooled = self.is_pooled();
        loop {
            ticks.tick().await;
            self.check_leader(probes);
            let unlistened = probes.unlistened_for();
            if !pooled && unlistened.is_none_or(|since| since < WITHOUT_SESSION) {
                continue;
            }
            let sent = Instant::now();
            match Probe::through(&self.db).await {
                Ok(mut probe) => {
                    self.observe(&probe, sent, probes);
                    if pooled {
                        probe.leader_is_alive = false;
                    }
                    // The session may have been opened meanwhile.
                    if pooled || probes.unlistened_for().is_some() {
                        self.take_part(&probe, true, Cause::Interval, probes);
                    }
                }
                Err(error) => {
                    tracing::debug!(error = chain(&error), "cannot probe through the pool");
                    if matches!(error.remedy(), Remedy::Migrate | Remedy::Grant) {
                        self.resign();
                    }
                }
            }
        }
    }

    /// Leads if this session holds the lock, or if no leader renews its heartbeat.
    fn take_part(&self, probe: &Probe, unnotified: bool, cause: Cause, probes: &Probes) {
        if probe.locked || !probe.leader_is_alive {
            self.lead(unnotified, cause);
        } else {
            self.resign();
        }
        probes.lock().led_at = Instant::now();
        self.health.set(Condition::NoLeader, None);
    }

    /// Called at each tick: sets the condition if no probe has succeeded for [`LEADERLESS_AFTER`].
    fn check_leader(&self, probes: &Probes) {
        let led_at = probes.lock().led_at;
        if led_at.elapsed() > LEADERLESS_AFTER {
            let reason = format!("no leader is known for {} s", LEADERLESS_AFTER.as_secs());
            self.health.set(Condition::NoLeader, Some(&reason));
        }
    }

    fn lead(&self, unnotified: bool, cause: Cause) {
        let was_unnotified = self.signals.set_unnotified(unnotified);
        self.metrics.leader_without_listen.set(unnotified.into());
        if self.leadership.is_leading() {
            if unnotified != was_unnotified {
                tracing::info!(
                    listen = !unnotified,
                    "leading, with or without a LISTEN connection"
                );
                self.signals.wakeup.notify();
            }
            return;
        }
        self.leadership.begin();
        self.metrics.leader.set(1);
        tracing::info!(
            listen = !unnotified,
            lock_was_released = cause == Cause::Release,
            "leading"
        );
        self.signals.wakeup.notify();
    }

    fn resign(&self) {
        self.signals.set_unnotified(false);
        self.metrics.leader_without_listen.set(0);
        self.metrics.leader.set(0);
        if self.leadership.resign() {
            tracing::info!("no longer leading");
        }
    }

    fn observe(&self, probe: &Probe, sent: Instant, probes: &Probes) {
        self.metrics.up.set(1);
        self.metrics.notify_queue_usage_ratio.set(probe.queue_usage);
        if probe.queue_usage >= NOTIFY_QUEUE_FULL {
            self.signals.wakeup.notify();
        }
        let step = probes
            .lock()
            .clock
            .step(probe.clock_secs, sent, Instant::now());
        if let Some(step_secs) = step {
            tracing::warn!(
                step_secs,
                "the database's clock stepped; checking all deadlines again"
            );
            self.signals.deadlines.rescan_all();
        }
    }
}
