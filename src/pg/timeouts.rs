//! The client's own limits on calls into the database.
//!
//! The server has limits too (see [`super::session`]); these apply if the server does not answer
//! at all, because a dead peer is indistinguishable from a slow one.

use std::time::Duration;

/// Limit on a call that should take milliseconds.
pub(crate) const SHORT: Duration = Duration::from_secs(5);

/// Limit on a call that reads many rows; longer than the server's own `statement_timeout` of 30 s.
pub(crate) const LONG: Duration = Duration::from_secs(35);

/// Default limit on a connection attempt to one host.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a stage waits for a free connection of its pool.
pub(crate) const POOL_WAIT: Duration = Duration::from_secs(5);

/// Default age from which on a pool replaces a connection: after a failover, connections to the
/// former primary end by then at the latest.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(30 * 60);
