//! Every test that meets a real PostgreSQL, in one binary, so that one server serves them all.

mod support;

mod model;

mod definition;
mod demo;
mod docs;
mod faults;
mod harness;
mod nginx;
mod operator;
mod pipeline;
mod plugin;
mod reconcile;
