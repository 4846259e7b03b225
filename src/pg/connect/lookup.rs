//! The addresses of a host, each of which is tried by itself.

use std::net::IpAddr;

use rand::seq::SliceRandom as _;
use tokio::net::lookup_host;

use super::attempt::{Attempt, within};
use super::error::{Cause, ConnectError};
use crate::pg::params::Target;

impl Attempt<'_> {
    /// The addresses of a host; one without an address for a Unix socket.
    pub(super) async fn addresses(
        &self,
        target: &Target,
        failed: &mut ConnectError,
    ) -> Vec<Option<IpAddr>> {
        if target.is_unix() {
            return vec![None];
        }
        if let Some(address) = target.hostaddr {
            return vec![Some(address)];
        }
        let name = target.name();
        let lookup = within(self.limit, lookup_host((name.as_str(), target.port))).await;
        let cause = match lookup {
            Ok(Ok(found)) => {
                let mut found: Vec<_> = found.map(|address| Some(address.ip())).collect();
                if self.params.shuffle {
                    found.shuffle(&mut rand::rng());
                }
                if !found.is_empty() {
                    return found;
                }
                Cause::Lookup(std::io::Error::other("it has no address"))
            }
            Ok(Err(error)) => Cause::Lookup(error),
            Err(limit) => Cause::NoAnswer(limit),
        };
        failed.push(&place(target, None), cause);
        Vec::new()
    }
}

/// The name of an address in messages.
pub(super) fn place(target: &Target, address: Option<IpAddr>) -> String {
    let (name, port) = (target.name(), target.port);
    match address {
        Some(address) if address.to_string() != name => format!("{name} ({address}):{port}"),
        _ => format!("{name}:{port}"),
    }
}
