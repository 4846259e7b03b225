//! Proves that a LISTEN session and the pool lead to the same database of the same server.
//!
//! Where statements go through a pooler and LISTEN does not, two connection strings name the server,
//! and they may disagree: from the start, or after a failover that moved only one of them. A daemon
//! would then listen to one database and work in another. So the session holds an advisory lock with a
//! random key, its *mark*, and the pool looks for it in `pg_locks`: only the same database of the same
//! server contains it. The answer is definite, without a time-out and whatever identifiers two copies
//! of a server share. Called by the start of the daemon and by the listener.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::connect::{Connector, drive};
use super::mode::detect_mode;
use super::names::LOCK_CLASS;
use super::pool::{Db, Param};
use super::session::{SessionMode, SessionProfile};
use super::timeouts::SHORT;
use super::{column, name_of};
use crate::error::Error;

/// The keys of marks. Lower ones are those of the leader and of migrations.
const MARKS: std::ops::Range<i32> = 0x1000_0000..i32::MAX;

/// $1, $2: the lock.
const MARK: &str = "\
-- pair.mark
select pg_catalog.pg_try_advisory_lock($1, $2) as marked,
       pg_catalog.pg_backend_pid() as pid,
       pg_catalog.format('database %s of the server at %s port %s',
                         pg_catalog.current_database(),
                         coalesce(pg_catalog.host(pg_catalog.inet_server_addr()), 'a local socket'),
                         pg_catalog.current_setting('port')) as place";

/// $1, $2: the lock; $3: the process that holds it.
const FIND_MARK: &str = "\
-- pair.find_mark
select exists (select
                 from pg_locks l
                where l.locktype = 'advisory'
                  and l.database = (select d.oid from pg_database d where d.datname = current_database())
                  and l.classid = $1::int8::oid
                  and l.objid = $2::int8::oid
                  and l.objsubid = 2
                  and l.pid = $3
                  and l.granted) as found,
       format('database %s of the server at %s port %s',
              current_database(),
              coalesce(host(inet_server_addr()), 'a local socket'),
              current_setting('port')) as place";

/// The mark that a session holds for as long as it lasts.
#[derive(Debug)]
pub(crate) struct Mark {
    key: i32,
    pid: i32,
    /// Where the session leads to.
    place: String,
}

impl Mark {
    /// Sets the mark in a session, and proves that the pool finds it.
    ///
    /// # Errors
    /// [`Error::Misdirected`] if it does not, and others if one of the two does not answer.
    pub(crate) async fn set(session: &Client, db: &Db) -> Result<Self, Error> {
        let key = rand::random_range(MARKS);
        let params: [Param<'_>; 2] = [(&LOCK_CLASS, Type::INT4), (&key, Type::INT4)];
        let statement = name_of(MARK);
        let row = timeout(SHORT, session.query_typed_one(MARK, &params))
            .await
            .map_err(|_| Error::Timeout {
                statement,
                after: SHORT,
            })?
            .map_err(|source| Error::Postgres { statement, source })?;
        if !column::<bool>(&row, statement, "marked")? {
            return Err(Error::Connect("another session has the same mark".into()));
        }
        let mark = Self {
            key,
            pid: column(&row, statement, "pid")?,
            place: column(&row, statement, "place")?,
        };
        mark.find(db).await?;
        Ok(mark)
    }

    /// Looks for the mark through the pool.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub(crate) async fn find(&self, db: &Db) -> Result<(), Error> {
        let params: [Param<'_>; 3] = [
            (&i64::from(LOCK_CLASS), Type::INT8),
            (&i64::from(self.key), Type::INT8),
            (&self.pid, Type::INT4),
        ];
        let row = db.query_one(FIND_MARK, &params, SHORT).await?;
        let statement = name_of(FIND_MARK);
        if column(&row, statement, "found")? {
            return Ok(());
        }
        let place: String = column(&row, statement, "place")?;
        Err(Error::Misdirected(format!(
            "--listen-url does not lead to the database that the daemon works in: it leads to {}, and \
             the other connections lead to {place}",
            self.place
        )))
    }

    /// Looks for the mark at an interval; returns only if it is gone for certain.
    pub(crate) async fn watch(&self, db: &Db, interval: Duration) -> Error {
        loop {
            tokio::time::sleep(interval).await;
            // A pool that does not answer proves nothing.
            if let Err(error @ Error::Misdirected(_)) = self.find(db).await {
                return error;
            }
        }
    }
}

/// Proves that a connector leads to sessions, and not to a pooler in transaction mode, which would
/// lose each LISTEN.
///
/// # Errors
/// [`Error::Misdirected`] if it does, and others if it leads nowhere.
pub(crate) async fn check_sessions(connector: &Connector) -> Result<(), Error> {
    if detect_mode(connector).await? == SessionMode::Session {
        return Ok(());
    }
    Err(Error::Misdirected(
        "--listen-url leads through a pooler in transaction mode, which loses LISTEN and session \
         locks: give the address of PostgreSQL itself"
            .to_owned(),
    ))
}

/// Both proofs, over connections that end with them.
///
/// # Errors
/// As [`Mark::set`] and [`check_sessions`].
pub(crate) async fn check_listen(connector: &Connector, db: &Db) -> Result<(), Error> {
    check_sessions(connector).await?;
    let profile = SessionProfile::Listener;
    let (session, traffic) = connector.open(profile, &profile.session()).await?;
    tokio::spawn(drive(traffic));
    Mark::set(&session, db).await.map(drop)
}
