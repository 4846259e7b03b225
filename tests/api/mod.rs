//! The read API over HTTP, on a real database.

pub(crate) mod access;
mod contract;
mod exact;
mod hostile;
mod lifecycle;
mod openapi;
mod plans;
mod property;
mod server;
mod shapes;
