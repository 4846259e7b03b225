//! A healthy daemon: events become statuses, and the reconciler corrects what no event reported.

mod events;
mod reconcile;
mod ui_notices;
mod upstream_triggers;
