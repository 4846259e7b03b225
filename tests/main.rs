//! The integration tests of the product, in one binary, so that they share one PostgreSQL server.
//!
//! | Folder | What belongs there |
//! |---|---|
//! | [`pipeline`] | the path of an event to its status, the reconciler, replicas: a healthy daemon |
//! | [`faults`] | the same while something fails: daemons, servers, networks, locks, clocks |
//! | [`histories`] | random writes and faults, checked by the oracle |
//! | [`definition`] | the SQL that decides a status, against the oracle |
//! | [`migrate`] | installing, upgrading and removing the database objects |
//! | [`connect`] | connections to the server: parameters, TLS, several hosts, secrets, waiting |
//! | [`commands`] | the command line: help, exit codes, `explain`, `backfill`, `verify` |
//! | [`reads`] | exact reads: every reader sees what the definition gives in its snapshot |
//! | [`api`] | the read API over HTTP |
//! | [`deploy`] | the files of `deploy/`, each with the program that reads it |
//! | [`docs`] | the documentation against the code |
//!
//! Fixtures are in the crate `testkit`, with tests of their own; the demo's tests are in
//! `crates/demo/tests`. `make test` runs everything. To run one test:
//!
//! ```text
//! cargo test --test all -- migrate::up::a_second_up_changes_nothing
//! ```
//!
//! A random test that fails prints its seed; `STATUS_INDEXER_TEST_SEED` repeats it.

mod api;
mod commands;
mod connect;
mod definition;
mod deploy;
mod docs;
mod faults;
mod histories;
mod migrate;
mod pipeline;
mod reads;
