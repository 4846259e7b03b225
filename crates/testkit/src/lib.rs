//! The common fixtures of the tests, the benchmarks and the demo of status-indexer.
//!
//! Contains no test of the product and depends on no part of it: it runs the product's binary
//! ([`product`]) and inspects the database. In reading order:
//!
//! - [`postgres`] is a private server, [`database`] gives every test a database of its own on a
//!   shared one, [`standby`] a replica of it, [`pooler`] a PgBouncer and [`proxy`] a network that
//!   fails on command in front of it.
//! - [`daemon`] runs the product's binary and fails a test at once when it dies; [`wait`] is the
//!   one place where tests poll; [`drift`] compares the stored statuses with the definition.
//! - [`writer`] writes single rows as the metadata service does, [`random_writers`] many at once,
//!   and [`clients`] simulates whole runs, for the demo.
//! - [`oracle`] is the definition a second time, in plain Rust; [`history`] generates random
//!   histories with faults and checks them by it; `src/bin/soak.rs` does that without end.
//! - [`seed`] repeats a random test; [`requirement`] reports what this machine or server cannot test.

pub mod clients;
pub mod daemon;
pub mod database;
pub mod drift;
pub mod history;
pub mod oracle;
pub mod pooler;
pub mod postgres;
pub mod process;
pub mod product;
pub mod proxy;
pub mod random_writers;
pub mod read_storm;
pub mod requirement;
pub mod seed;
pub mod standby;
pub mod wait;
pub mod writer;
