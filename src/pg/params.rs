//! The parameters of a connection, under libpq's names and with libpq's meanings.
//!
//! Owns the list of keywords: each is supported, or refused by its name; none is accepted and ignored.
//! [`ParamsSource`] is what an operator configured. It is resolved anew for each connection, so that a
//! password, a password file or a service file may change under a running process. The result is
//! [`Params`], from which `connect` opens the connection.

mod convert;
mod error;
mod keywords;
mod resolved;
mod source;
mod target;
#[cfg(test)]
mod testing;
mod tls;
mod values;

pub use error::ParamsError;
pub(crate) use resolved::{Keepalives, Limit, Params, TargetSession};
pub use source::ParamsSource;
pub(crate) use source::{Env, PasswordOrigin, process_env};
pub(crate) use target::Target;
