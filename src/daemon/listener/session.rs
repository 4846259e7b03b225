//! The LISTEN session: its opening, the limits on its probes, and the release of the leader's lock.
//!
//! Promises that a session by a connection string of its own is one (no pooler in transaction mode) and
//! leads to the database of the pool. The task that reads its notifications does nothing else. Called by
//! the listener.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client};
use tokio_util::task::AbortOnDropHandle;

use super::Listener;
use super::probe::{Probe, silence_ms};
use crate::error::{Error, chain};
use crate::metrics::Metrics;
use crate::pg::{
    CHANNEL, LEADER_LOCK, LOCK_CLASS, Mark, Param, RELEASED, SessionProfile, Traffic,
    check_sessions,
};
use crate::signals::Wakeup;

/// The limit on a probe of a fast server; a probe that exceeds its limit ends the session.
const MIN_PROBE_DEADLINE: Duration = Duration::from_millis(1500);

/// The limit on a probe of a slow server, and on the first call of every session.
const MAX_PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// The limit on a probe, as a multiple of the round trip of the session's first call.
const PROBE_DEADLINE_PARTS: u32 = 4;

/// A session with a longer round trip than this gets a longer idle timeout on the server.
const SLOW_ROUND_TRIP: Duration = Duration::from_millis(500);

/// The limit on the release of the lock when the daemon stops. The end of the session releases it too.
const RELEASE_DEADLINE: Duration = Duration::from_secs(1);

/// Servers before 14 do not know the setting, and `set` would fail there.
const LONGER_IDLE_TIMEOUT: &str = "\
select set_config(name, '60s', false) from pg_settings where name = 'idle_session_timeout'";

/// Lets the heartbeat appear old, for followers that cannot take the lock, releases the lock, and wakes
/// the followers. $1, $2: the lock; $3: the channel; $4: the payload; $5: the age in milliseconds.
const RELEASE: &str = "\
-- listener.release
select setval('status_indexer.leader_heartbeat', (extract(epoch from clock_timestamp()) * 1000)::bigint - $5),
       pg_advisory_unlock($1, $2),
       pg_notify($3, $4)";

/// See the module.
pub(super) struct Session {
    client: Client,
    /// Reads the traffic, until the connection ends.
    pub(super) reader: AbortOnDropHandle<()>,
    /// Notified when a leader has released its lock.
    pub(super) released: Wakeup,
    /// The limit on a probe.
    deadline: Duration,
    /// Proves that the session leads to the pool's database; none if both have one connection string.
    pub(super) mark: Option<Mark>,
    /// Whether the session holds the leader's lock.
    pub(super) locked: bool,
}

impl Session {
    /// Opens the session. `proved`: whether its connection string was seen to lead to sessions.
    pub(super) async fn open(listener: &Listener, proved: &mut bool) -> Result<Self, Error> {
        let direct = listener.direct.as_ref();
        let connector = direct.unwrap_or(&listener.connector);
        let (client, traffic) = connector.connect_bare().await?;
        let released = Wakeup::default();
        let reader = AbortOnDropHandle::new(tokio::spawn(forward(
            traffic,
            listener.signals.wakeup.clone(),
            released.clone(),
            listener.metrics.clone(),
        )));
        let round_trip = listen(&client).await?;
        let mut mark = None;
        if direct.is_some() {
            if !*proved {
                check_sessions(connector).await?;
                *proved = true;
            }
            mark = Some(Mark::set(&client, &listener.db).await?);
        }
        Ok(Self {
            client,
            reader,
            released,
            deadline: (round_trip * PROBE_DEADLINE_PARTS)
                .clamp(MIN_PROBE_DEADLINE, MAX_PROBE_DEADLINE),
            mark,
            locked: false,
        })
    }

    /// Probes the server, and tries to take the leader's lock.
    pub(super) async fn probe(&mut self) -> Result<Probe, Error> {
        let probe = Probe::over(&self.client, self.locked, self.deadline).await?;
        self.locked = probe.locked;
        Ok(probe)
    }

    /// Releases the leader's lock, so that a follower takes it at once.
    pub(super) async fn release(&self) {
        let params: [Param<'_>; 5] = [
            (&LOCK_CLASS, Type::INT4),
            (&LEADER_LOCK, Type::INT4),
            (&CHANNEL, Type::TEXT),
            (&RELEASED, Type::TEXT),
            (&(silence_ms() + 1), Type::INT8),
        ];
        let release = self.client.query_typed(RELEASE, &params);
        if let Err(error) = bounded("listener.release", RELEASE_DEADLINE, release).await {
            tracing::debug!(error = chain(&error), "the lock ends with the session");
        }
    }
}

/// Begins to listen; returns the round trip.
async fn listen(client: &Client) -> Result<Duration, Error> {
    let sent = Instant::now();
    let listen = format!("{}listen {CHANNEL};", SessionProfile::Listener.session());
    let call = client.batch_execute(&listen);
    bounded("listener.listen", MAX_PROBE_DEADLINE, call).await?;
    let round_trip = sent.elapsed();
    if round_trip > SLOW_ROUND_TRIP {
        let call = client.batch_execute(LONGER_IDLE_TIMEOUT);
        bounded("listener.idle_timeout", MAX_PROBE_DEADLINE, call).await?;
    }
    Ok(round_trip)
}

/// Reads the session's traffic and wakes the worker for each notification of a writer, until the
/// connection ends.
async fn forward(mut traffic: Traffic, wakeup: Wakeup, released: Wakeup, metrics: Metrics) {
    loop {
        match poll_fn(|context| traffic.poll_message(context)).await {
            Some(Ok(AsyncMessage::Notification(note))) if note.payload() == RELEASED => {
                released.notify();
            }
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

pub(super) async fn bounded<T>(
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
