//! Installs, upgrades, inspects and removes the indexer's objects in the database.
//!
//! Promises that only one migrator works at a time, and that each step is applied completely or not
//! at all: after a crash at any point, the same command continues. A statement that locks a busy
//! table gives up after [`LOCK_TIMEOUT`] and retries, so that no other session queues behind it for
//! longer. Indexes are built concurrently. [`down()`] leaves the database as it was before [`up()`].
//! Called by the command `migrate` and, with `--migrate`, at the start of the daemon.

mod collisions;
mod dependents;
mod down;
mod dumps;
mod functions;
mod grants;
mod index;
pub(crate) mod inspect;
mod installed;
mod migrator;
mod owner;
mod publications;
mod query;
mod render;
mod status;
mod steps;
mod tables;
mod ui;
mod up;
mod view;

pub use down::down;
pub(crate) use installed::NewerDatabase;
pub use migrator::{LOCK_TIMEOUT, NEWEST_TESTED_SERVER, OLDEST_SERVER};
pub use status::status;
pub(crate) use tables::UpstreamMissing;
pub use tables::{Table, TableNames, Tables, upstream_notify_triggers};
pub use up::{Options, Ui, up};
