//! Histories: what may happen to the runs of a flow and to those who keep its statuses, from a seed.
//!
//! A *history* is the life of one flow, a sequence of writes. A *round* is several of them played
//! at the same time in one database, with faults in between. Promises that after each round every
//! run's stored status is the model's verdict, that the pipeline and not the walk over all runs saw
//! to it where triggers saw the writes, and that a round which fails is told by its seed and by the
//! fewest steps that still fail. Called by the tests and by `make soak`.
//!
//! In reading order: [`step`] is what can happen, [`generate`] makes rounds of it, [`ledger`] knows
//! what must be true, [`site`] is where it happens, [`play`] and [`judge`] do what their names say,
//! [`shrink`] shortens what failed, and a [`campaign`] is all of it, round after round.

pub(crate) mod campaign;
pub(crate) mod generate;
pub(crate) mod judge;
pub(crate) mod ledger;
pub(crate) mod play;
pub(crate) mod shrink;
pub(crate) mod site;
pub(crate) mod step;
