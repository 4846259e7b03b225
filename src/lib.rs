//! Keeps one column current: `runs_v3.run_status`, the status of every Metaflow run.
//!
//! The path of an event, which is the order to read the modules in:
//!
//! 1. A writer's row fires a trigger (`migrations/0010_trigger_functions.sql`), which puts the run's
//!    key into a queue, in the writer's own transaction, and sends an empty notification.
//! 2. The listener of the [`daemon`] receives it. Its session also holds the leadership among several
//!    daemons.
//! 3. The worker takes the rows of the queue and applies their runs, in one call.
//! 4. `status_indexer.apply` (`migrations/0006_apply.sql`, called through [`store`]) locks the runs,
//!    evaluates them by the definition (`migrations/0005_definition.sql`) and writes what differs. It
//!    is the one way to change a status.
//! 5. The sweeper does the same for the runs that time alone has changed, and the reconciler for all
//!    runs, by a [`scan`], whatever happened to their events.
//!
//! Readers use the [`api`]. [`migrate`] installs what all of this needs. The [`commands`] start it:
//! `run` the daemon, `backfill` the first scan at full speed, `verify` a scan that changes nothing,
//! `explain` the evidence of one run. The layers below are [`pg`] (the way to the database), [`error`],
//! [`backoff`] and [`status`]; a module uses those above it in this file's list, never those below.

pub mod status;

pub mod backoff;
pub mod error;
pub mod exit;
mod log_limit;
pub mod output;
mod percent;
pub mod shutdown;
pub mod telemetry;

pub mod metrics;
pub mod signals;

pub mod pg;
pub mod store;

pub(crate) mod wait;

pub mod scan;

pub mod api;
pub mod http;
pub mod migrate;

pub mod config;
pub mod daemon;

pub mod cli;
pub mod commands;
