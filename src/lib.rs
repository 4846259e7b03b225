//! Keeps one column current: `runs_v3.run_status`, the status of every Metaflow run.
//!
//! The path of an event, which is the order to read the modules in:
//!
//! 1. A writer's row fires a trigger (`migrations/0010_trigger_functions.sql`). The trigger puts
//!    the run's key into a queue, in the writer's own transaction, and sends an empty notification.
//! 2. The listener of the [`daemon`] receives the notification. Its session also takes part in the
//!    election of the leader among several daemons.
//! 3. The worker removes rows from the queue and applies their runs, in one call.
//! 4. `status_indexer.apply` (`migrations/0006_apply.sql`, called through [`store`]) locks the
//!    runs, evaluates them by the definition (`migrations/0005_definition.sql`) and writes what
//!    differs. It is the only code that changes a status.
//! 5. The sweeper applies the runs whose status changes by time alone. The reconciler compares all
//!    runs by a [`scan`] and applies those that differ, whatever happened to their events.
//!
//! Readers use the [`api`]. [`migrate`] installs what all of this needs. The [`commands`] are `run`
//! (the daemon), `backfill` (the first scan at full speed), `verify` (a scan that changes nothing),
//! `explain` (the evidence of one run) and `migrate`. The layers below are [`pg`] (the connection
//! to the database), [`error`], [`backoff`] and [`status`]. A module uses only modules that stand
//! above it in this file's list.

pub mod status;

pub mod backoff;
pub mod error;
pub mod exit;
mod log_limit;
pub mod output;
mod percent;
pub mod shutdown;
pub mod telemetry;
pub mod version;

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
pub mod doctor;

pub mod cli;
pub mod commands;
