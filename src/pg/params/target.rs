//! The list of hosts: `host`, `hostaddr` and `port`, each a list of one length.

use std::net::IpAddr;

use super::error::{ParamsError, invalid};
use super::values::Values;

/// Where no host is given. libpq would try a Unix socket first, which no container has.
pub(super) const DEFAULT_HOST: &str = "localhost";

/// One entry of the list of hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// A name, an address or, if it begins with `/`, the directory of a Unix socket.
    pub(crate) host: Option<String>,
    /// An address that saves the look-up of the name.
    pub(crate) hostaddr: Option<IpAddr>,
    pub(crate) port: u16,
}

impl Target {
    pub(crate) fn is_unix(&self) -> bool {
        self.hostaddr.is_none() && self.host.as_ref().is_some_and(|host| host.starts_with('/'))
    }

    /// The name under which messages and the password file know it.
    pub(crate) fn name(&self) -> String {
        match (&self.host, self.hostaddr) {
            (Some(host), _) => host.clone(),
            (None, Some(address)) => address.to_string(),
            (None, None) => DEFAULT_HOST.to_owned(),
        }
    }
}

impl Values {
    /// The hosts, in the order in which they are tried.
    pub(super) fn targets(&self) -> Result<Vec<Target>, ParamsError> {
        let list = |name| -> Vec<&str> {
            self.get(name)
                .map_or_else(Vec::new, |text| text.split(',').collect())
        };
        let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
        if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
            return Err(invalid("hostaddr", "must have as many entries as \"host\""));
        }
        let count = hosts.len().max(addresses.len()).max(1);
        if ports.len() > 1 && ports.len() != count {
            return Err(invalid("port", "must have one entry, or one for each host"));
        }
        (0..count)
            .map(|at| {
                let host = hosts.get(at).filter(|host| !host.is_empty());
                if host.is_some_and(|host| host.starts_with('@')) {
                    return Err(invalid("host", "cannot name an abstract Unix socket"));
                }
                let hostaddr = addresses.get(at).filter(|address| !address.is_empty());
                let hostaddr = hostaddr.map(|address| address.parse()).transpose();
                let hostaddr =
                    hostaddr.map_err(|_| invalid("hostaddr", "must be an IP address"))?;
                let port = ports.get(at).or_else(|| ports.first()).copied();
                Ok(Target {
                    host: match (host, hostaddr) {
                        (Some(host), _) => Some((*host).to_owned()),
                        (None, Some(_)) => None,
                        (None, None) => Some(DEFAULT_HOST.to_owned()),
                    },
                    hostaddr,
                    port: port_number(port.unwrap_or_default())?,
                })
            })
            .collect()
    }
}

fn port_number(text: &str) -> Result<u16, ParamsError> {
    match text.trim() {
        "" => Ok(5432),
        text => match text.parse() {
            Ok(0) | Err(_) => Err(invalid("port", "must be a number from 1 to 65535")),
            Ok(port) => Ok(port),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::params;

    fn targets(dsn: &str) -> Vec<(String, u16)> {
        let targets = params(dsn).targets;
        targets
            .iter()
            .map(|target| (target.name(), target.port))
            .collect()
    }

    #[test]
    fn hosts_addresses_and_ports_are_lists_of_one_length() {
        let of = |pairs: &[(&str, u16)]| -> Vec<(String, u16)> {
            pairs
                .iter()
                .map(|(name, port)| ((*name).to_owned(), *port))
                .collect()
        };
        assert_eq!(targets(""), of(&[("localhost", 5432)]));
        assert_eq!(targets("host=a,b port=7"), of(&[("a", 7), ("b", 7)]));
        assert_eq!(
            targets("host=a,,c port=1,,3"),
            of(&[("a", 1), ("localhost", 5432), ("c", 3)])
        );
        assert_eq!(
            targets("postgresql://a,b:2/d"),
            of(&[("a", 5432), ("b", 2)])
        );
        assert_eq!(targets("hostaddr=::1"), of(&[("::1", 5432)]));
        assert_eq!(targets("host=a hostaddr=::1"), of(&[("a", 5432)]));
        assert!(params("host=/run").targets[0].is_unix());
        assert!(!params("host=/run hostaddr=::1").targets[0].is_unix());
    }
}
