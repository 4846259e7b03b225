//! A healthy daemon: events become statuses, and the reconciler corrects what no event reported.

mod events;
mod reconcile;
mod upstream_triggers;
