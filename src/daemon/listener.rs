//! Holds the LISTEN session: receives notifications, takes part in the election, probes the server.
//!
//! The session saves work, and correctness does not depend on it: while it cannot be opened or
//! kept, the listener probes through the pool, and the worker polls. Promises that a session that
//! stopped answering is detected within the limit on a probe; that the queue is drained after every
//! (re)connect, because notifications sent meanwhile are lost; and that a leader that stopped
//! renewing its heartbeat is replaced after [`LEADER_SILENCE`] while the pool of any other daemon
//! works. The task that reads notifications does nothing else. Called by the daemon.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::AsyncMessage;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::clock_watch::ClockWatch;
use super::health::{Health, Stage};
use super::leadership::Leadership;
use crate::error::{Error, Remedy, chain};
use crate::metrics::{Condition, Metrics};
use crate::pg::{
    CHANNEL, Connector, Db, LEADER_LOCK, LOCK_CLASS, Param, SHORT, SessionMode, SessionProfile,
    Traffic,
};
use crate::signals::{Signals, Wakeup};

/// How often the session is probed, and a follower tries to become leader.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The limit on a probe of a fast server; a probe that exceeds its limit ends the session.
const MIN_PROBE_DEADLINE: Duration = Duration::from_millis(1500);

/// The limit on a probe of a slow server, and on the first call of every session.
const MAX_PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// The limit on a probe, as a multiple of the round trip of the session's first call.
const PROBE_DEADLINE_PARTS: u32 = 4;

/// A session with a longer round trip than this gets a longer idle timeout on the server.
const SLOW_ROUND_TRIP: Duration = Duration::from_millis(500);

/// A daemon that has had no session for this long probes through the pool.
const WITHOUT_SESSION: Duration = Duration::from_secs(3);

/// A leader that has not renewed its heartbeat for this long is presumed dead or frozen, even if
/// its session still holds the lock: the server process of that session may be frozen too.
pub(crate) const LEADER_SILENCE: Duration = Duration::from_secs(5);

/// If no probe has succeeded for this long, no leader is known.
const LEADERLESS_AFTER: Duration = Duration::from_secs(10);

/// From this usage of the notification queue on, each probe wakes the worker, because writers stop
/// notifying at one half.
pub(crate) const NOTIFY_QUEUE_FULL: f64 = 0.4;

/// $1: whether this session holds the lock; $2, $3: the lock; $4: `LEADER_SILENCE` in milliseconds.
/// The holder renews the heartbeat, a sequence, because it is read and written in place.
const PROBE: &str = "\
-- listener.probe
with probe as materialized (
  select extract(epoch from clock_timestamp())::float8 as clock_secs,
         case when $1 then true else pg_try_advisory_lock($2, $3) end as locked
)
select clock_secs,
       pg_notification_queue_usage() as queue_usage,
       locked,
       case
         when locked then setval('status_indexer.leader_heartbeat', (clock_secs * 1000)::bigint) > 0
         else (select abs((clock_secs * 1000)::bigint - h.last_value) <= $4
                 from status_indexer.leader_heartbeat h)
       end as leader_is_alive
  from probe";

/// The probe through the pool, which holds no lock. $1: `LEADER_SILENCE` in milliseconds.
const PROBE_POOL: &str = "\
-- listener.probe_pool
select extract(epoch from clock_timestamp())::float8 as clock_secs,
       pg_notification_queue_usage() as queue_usage,
       false as locked,
       abs((extract(epoch from clock_timestamp()) * 1000)::bigint - h.last_value) <= $1 as leader_is_alive
  from status_indexer.leader_heartbeat h";

/// Servers before 14 do not know the setting, and `set` would fail there.
const LONGER_IDLE_TIMEOUT: &str = "\
select set_config(name, '60s', false) from pg_settings where name = 'idle_session_timeout'";

/// See the module.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Opens the session.
    pub(crate) connector: Connector,
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
            () = stop.cancelled() => {}
            never = self.keep_session(&probes) => match never {},
            never = self.probe_pool(&probes) => match never {},
        }
        self.metrics.listener_connected.set(0);
        self.resign();
    }

    /// Opens the session, and opens it again whenever it ends.
    async fn keep_session(&self, probes: &Probes) -> Infallible {
        if self.db.mode() == SessionMode::Transaction {
            // A transaction pooler has no sessions.
            return std::future::pending().await;
        }
        let mut stage = Stage::optional(
            "listener",
            Duration::from_millis(100),
            Duration::from_secs(3),
        );
        loop {
            let Err(error) = self.session(&mut stage, probes).await;
            if self.metrics.listener_connected.get() == 1 {
                self.metrics.listener_connected.set(0);
                self.metrics.listener_reconnects_total.inc();
                // The server released the lock with the session.
                self.resign();
            }
            probes.set_listening(false);
            if matches!(error, Error::Timeout { .. }) {
                self.metrics.up.set(0);
            }
            let what = if stage.is_failing() {
                "cannot open LISTEN connection"
            } else {
                "LISTEN connection lost"
            };
            let wait = stage.failed(&error, what);
            tokio::time::sleep(wait).await;
        }
    }

    /// Opens the session and probes it until it ends.
    async fn session(&self, stage: &mut Stage, probes: &Probes) -> Result<Infallible, Error> {
        let (client, traffic) = self.connector.connect_bare().await?;
        let mut reader = AbortOnDropHandle::new(tokio::spawn(forward(
            traffic,
            self.signals.wakeup.clone(),
            self.metrics.clone(),
        )));
        let sent = Instant::now();
        let listen = format!("{}listen {CHANNEL};", SessionProfile::Listener.session());
        bounded(
            "listener.listen",
            MAX_PROBE_DEADLINE,
            client.batch_execute(&listen),
        )
        .await?;
        let round_trip = sent.elapsed();
        let deadline =
            (round_trip * PROBE_DEADLINE_PARTS).clamp(MIN_PROBE_DEADLINE, MAX_PROBE_DEADLINE);
        if round_trip > SLOW_ROUND_TRIP {
            bounded(
                "listener.idle_timeout",
                MAX_PROBE_DEADLINE,
                client.batch_execute(LONGER_IDLE_TIMEOUT),
            )
            .await?;
        }
        let mut ticks = interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut locked = false;
        loop {
            // The lock is released with the session, so the leadership ends at once.
            tokio::select! {
                _ = ticks.tick() => {}
                _ = &mut reader => {
                    return Err(Error::Connect("the server closed the connection".into()));
                }
            }
            let sent = Instant::now();
            let params: [Param<'_>; 4] = [
                (&locked, Type::BOOL),
                (&LOCK_CLASS, Type::INT4),
                (&LEADER_LOCK, Type::INT4),
                (&silence_ms(), Type::INT8),
            ];
            let row = bounded(
                "listener.probe",
                deadline,
                client.query_typed_one(PROBE, &params),
            )
            .await?;
            let probe = Probe::read(&row, "listener.probe")?;
            stage.succeeded();
            if self.metrics.listener_connected.get() == 0 {
                self.metrics.listener_connected.set(1);
                probes.set_listening(true);
                // Events committed before LISTEN took effect are in the queue without a
                // notification.
                self.signals.wakeup.notify();
            }
            locked = probe.locked;
            self.observe(&probe, sent, probes);
            self.take_part(&probe, false, probes);
        }
    }

    /// Probes through the pool while the session is missing. Behind a transaction pooler it always
    /// is, and every daemon leads: that costs more, and the statuses are correct.
    async fn probe_pool(&self, probes: &Probes) -> Infallible {
        let mut ticks = interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let pooled = self.db.mode() == SessionMode::Transaction;
        loop {
            ticks.tick().await;
            self.check_leader(probes);
            let unlistened = probes.unlistened_for();
            if !pooled && unlistened.is_none_or(|since| since < WITHOUT_SESSION) {
                continue;
            }
            let sent = Instant::now();
            let params: [Param<'_>; 1] = [(&silence_ms(), Type::INT8)];
            let answer = self.db.query_one(PROBE_POOL, &params, SHORT).await;
            match answer.and_then(|row| Probe::read(&row, "listener.probe_pool")) {
                Ok(mut probe) => {
                    self.observe(&probe, sent, probes);
                    if pooled {
                        probe.leader_is_alive = false;
                    }
                    // The session may have been opened meanwhile.
                    if pooled || probes.unlistened_for().is_some() {
                        self.take_part(&probe, true, probes);
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
    fn take_part(&self, probe: &Probe, unnotified: bool, probes: &Probes) {
        if probe.locked || !probe.leader_is_alive {
            self.lead(unnotified);
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

    fn lead(&self, unnotified: bool) {
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
        tracing::info!(listen = !unnotified, "leading");
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

/// [`LEADER_SILENCE`] in milliseconds.
fn silence_ms() -> i64 {
    i64::try_from(LEADER_SILENCE.as_millis()).unwrap_or(i64::MAX)
}

struct Probe {
    clock_secs: f64,
    queue_usage: f64,
    /// Whether this session holds the leader's lock.
    locked: bool,
    /// Whether the leader's heartbeat was renewed within [`LEADER_SILENCE`].
    leader_is_alive: bool,
}

impl Probe {
    fn read(row: &tokio_postgres::Row, statement: &'static str) -> Result<Self, Error> {
        let read = || {
            Ok(Self {
                clock_secs: row.try_get("clock_secs")?,
                queue_usage: row.try_get("queue_usage")?,
                locked: row.try_get("locked")?,
                leader_is_alive: row.try_get("leader_is_alive")?,
            })
        };
        read().map_err(|source: tokio_postgres::Error| Error::Answer {
            statement,
            source: source.into(),
        })
    }
}

/// Reads the session's traffic and wakes the worker for each notification, until the connection
/// ends.
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
    limit: Duration,
    call: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Error> {
    match timeout(limit, call).await {
        Ok(answer) => answer.map_err(|source| Error::Postgres { statement, source }),
        Err(_) => Err(Error::Timeout {
            statement,
            after: limit,
        }),
    }
}
