//! Names and numbers that several sessions must agree on.

/// The channel that triggers notify and the listener listens on.
pub(crate) const CHANNEL: &str = "status_indexer";

/// The payload of the notification of a leader that released its lock. Those of triggers are empty.
pub(crate) const RELEASED: &str = "released";

/// The first key of every advisory lock of the indexer.
pub(crate) const LOCK_CLASS: i32 = 1_937_011_049;

/// The second key of the lock that the leader holds.
pub(crate) const LEADER_LOCK: i32 = 1;

/// The second key of the lock that a migration holds.
pub(crate) const MIGRATION_LOCK: i32 = 2;
