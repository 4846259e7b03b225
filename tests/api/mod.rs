//! The read API over HTTP, on a real database.

mod contract;
mod hostile;
mod lifecycle;
mod openapi;
mod plans;
mod property;
mod server;
mod shapes;
