//! Every test that meets a real PostgreSQL, in one binary, so that one server serves them all.

mod support;

mod model;

mod history;

mod api;
mod cli;
mod definition;
mod demo;
mod docs;
mod explain;
mod faults;
mod harness;
mod histories;
mod migrate;
mod neighbour;
mod nginx;
mod operator;
mod pipeline;
mod plugin;
mod reconcile;
mod standby;
