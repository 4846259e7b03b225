//! The read API over HTTP, on a real database.

mod contract;
mod exact;
mod hostile;
mod lifecycle;
mod openapi;
mod plans;
mod property;
mod server;
mod shapes;
