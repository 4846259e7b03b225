//! The probes of the listener: the server's clock, the leader's lock and its heartbeat, in one statement.
//!
//! Owns the statements and their answers. Called by the listener: over its session, and through the pool
//! while the session is missing.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::session::bounded;
use crate::error::Error;
use crate::pg::{Db, LEADER_LOCK, LOCK_CLASS, Param, SHORT, name_of};

/// A leader that has not renewed its heartbeat for this long is presumed dead or frozen, even if
/// its session still holds the lock: the server process of that session may be frozen too.
pub(crate) const LEADER_SILENCE: Duration = Duration::from_secs(5);

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

/// Why a session was probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The probe was due.
    Interval,
    /// A leader had released its lock.
    Release,
}

/// The answer to a probe.
pub(super) struct Probe {
    pub(super) clock_secs: f64,
    pub(super) queue_usage: f64,
    /// Whether the session holds the leader's lock.
    pub(super) locked: bool,
    /// Whether the leader's heartbeat was renewed within [`LEADER_SILENCE`].
    pub(super) leader_is_alive: bool,
}

impl Probe {
    /// Over the session. `locked`: whether it holds the lock; if not, it tries to take it.
    pub(super) async fn over(
        session: &Client,
        locked: bool,
        limit: Duration,
    ) -> Result<Self, Error> {
        let params: [Param<'_>; 4] = [
            (&locked, Type::BOOL),
            (&LOCK_CLASS, Type::INT4),
            (&LEADER_LOCK, Type::INT4),
            (&silence_ms(), Type::INT8),
        ];
        let name = name_of(PROBE);
        let answer = bounded(name, limit, session.query_typed_one(PROBE, &params)).await;
        Self::read(&answer?, name)
    }

    /// Through the pool.
    pub(super) async fn through(db: &Db) -> Result<Self, Error> {
        let params: [Param<'_>; 1] = [(&silence_ms(), Type::INT8)];
        let answer = db.query_one(PROBE_POOL, &params, SHORT).await;
        Self::read(&answer?, name_of(PROBE_POOL))
    }

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

/// After how many milliseconds without a heartbeat a leader is presumed dead.
pub(super) fn silence_ms() -> i64 {
    i64::try_from(LEADER_SILENCE.as_millis()).unwrap_or(i64::MAX)
}
