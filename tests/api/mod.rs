//! The read API over real HTTP, on a real database.

mod contract;
mod hostile;
mod life;
mod openapi;
mod plans;
mod property;
mod server;
