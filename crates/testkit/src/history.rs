//! Random histories: writes to the runs of a flow and faults of the daemons, generated from a seed.
//!
//! A *history* is a sequence of writes to one flow. A *round* runs several histories at the same
//! time in one database, with faults in between. Promises that after each round every stored status
//! is compared with the oracle's; that the pipeline, and not the reconciler, wrote it wherever
//! triggers fired; and that a round that fails is reported by its seed and by the fewest steps that
//! still fail. Called by the tests and by `make soak`.
//!
//! In reading order: [`step`] lists the possible steps, [`generate`] makes rounds of them,
//! [`flow_model`] records what was written, [`environment`] has the server and the daemons, [`run`]
//! executes the steps, [`check`] compares, [`shrink`] reduces a failed round, and a [`campaign`]
//! does all of this, round after round.

pub mod campaign;
pub mod check;
pub mod environment;
pub mod failure;
pub mod flow_model;
pub mod generate;
pub mod run;
pub mod shrink;
pub mod step;
