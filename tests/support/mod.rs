//! What the tests stand on: real servers, real databases, the real binary, and faults.
//!
//! Owns no test. Promises that a test says only what it does and what must hold: a database of its
//! own ([`database`]), rows written as the metadata service writes them ([`writer`]), the daemon as
//! a process ([`daemon`]), a network that fails on command ([`proxy`]), a copy
//! that follows ([`standby`]), waiting for a condition with a
//! deadline and a clear text ([`wait`]), writers by the dozen ([`traffic`]), and the column held against the definition ([`verdict`]).

pub(crate) mod daemon;
pub(crate) mod database;
pub(crate) mod pooler;
pub(crate) mod proxy;
pub(crate) mod standby;
pub(crate) mod traffic;
pub(crate) mod verdict;
pub(crate) mod wait;
pub(crate) mod writer;
