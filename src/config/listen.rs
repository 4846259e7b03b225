//! Addresses to listen on, as operators write them.

use std::net::{Ipv6Addr, SocketAddr};

/// Where the read API listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// On this address.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

/// An address and a port. Without an address (`:9487`), all interfaces of both families.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let all = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let parsed = match text.strip_prefix(':') {
        Some(port) => port.parse().map(all).ok(),
        None => text.parse().ok(),
    };
    parsed.ok_or_else(|| {
        "give an IP address and a port, for example 127.0.0.1:9487, or [::]:9487 or :9487 for all \
         interfaces"
            .to_owned()
    })
}

/// The same, or `off`.
pub(super) fn address_or_off(text: &str) -> Result<Listen, String> {
    match text {
        "off" => Ok(Listen::Off),
        text => address(text)
            .map(Listen::At)
            .map_err(|error| format!("{error}; or off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_an_ip_address_and_a_port() {
        for (text, address_) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("[::1]:80", "[::1]:80"),
            ("[::]:0", "[::]:0"),
            (":8081", "[::]:8081"),
        ] {
            let expected = address_.parse().expect("an address");
            assert_eq!(address(text), Ok(expected), "{text}");
            assert_eq!(address_or_off(text), Ok(Listen::At(expected)), "{text}");
        }
        for text in ["", ":", "8081", "::", ":x", ":70000", "localhost:80", "OFF"] {
            let error = address_or_off(text).expect_err("it is refused");
            assert!(error.contains("127.0.0.1:9487"), "{text}: {error}");
        }
        assert!(address("off").is_err());
        assert_eq!(address_or_off("off"), Ok(Listen::Off));
    }
}
