//! Keeps one column true: `runs_v3.run_status`, the status of every Metaflow run.
//!
//! The path of an event, which is the order to read the modules in:
//!
//! 1. A writer's row fires a trigger (`migrations/0010_trigger_functions.sql`), which puts the run's
//!    key into a queue in the writer's own transaction and sends an empty notification.
//! 2. The [`listener`] hears it. Its session also holds the lead among several daemons.
//! 3. The [`worker`] takes the queue's rows and has their runs judged, in one call.
//! 4. `status_indexer.apply` (`migrations/0006_apply.sql`, called through [`store`]) locks, judges
//!    by the definition (`migrations/0005_definition.sql`) and writes what differs. It is the one
//!    way to change a status.
//! 5. The [`sweeper`] does the same for the runs that time alone has changed, and the
//!    [`reconciler`] for all runs, by the [`walk`], whatever happened to their events.
//!
//! Readers ask the [`api`]. The [`daemon`] runs these stages; [`migrate`] installs what they need;
//! [`backfill`] makes the first walk at full speed and [`verify`] one that changes nothing;
//! [`explain`] tells why one run has its status.
//! Beneath them lie [`pg`] (the way to the database), [`error`], [`backoff`] and [`status`].

pub mod status;

pub mod backoff;
pub mod error;

pub mod pg;

pub mod store;

pub mod metrics;
pub mod signals;

pub mod listener;
pub mod reconciler;
pub mod sweeper;
pub mod walk;
pub mod worker;

pub mod api;
pub mod backfill;
pub mod explain;
pub mod http;
pub mod migrate;
pub mod verify;

pub mod daemon;

pub mod cli;
pub mod config;
pub mod output;
pub mod shutdown;
pub mod telemetry;
