//! The comparison of a certificate's names with the host's, as in
//! `pq_verify_peer_name_matches_certificate` of libpq.

use std::net::IpAddr;

use x509_cert::der::oid::db::rfc4519::CN;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::{Certificate, Problem};

impl Certificate<'_> {
    /// Verifies that it is for the host.
    pub(crate) fn verify_name(&self, host: &str) -> Result<(), rustls::Error> {
        let address: Option<IpAddr> = host.parse().ok();
        let alternatives = self.extension::<SubjectAltName>()?;
        let (mut names, mut addresses) = (Vec::new(), Vec::new());
        for name in alternatives.iter().flat_map(|alternatives| &alternatives.0) {
            match name {
                GeneralName::DnsName(name) => names.push(name.as_str().to_owned()),
                GeneralName::IpAddress(octets) => addresses.extend(ip_address(octets.as_bytes())),
                _ => {}
            }
        }
        // The common name counts only where no alternative name is of the host's kind.
        let has_kind = match address {
            Some(_) => !addresses.is_empty(),
            None => !names.is_empty(),
        };
        if !has_kind {
            names.extend(self.common_name().filter(|name| !names.contains(name)));
        }
        let matches = names.iter().any(|pattern| name_matches(pattern, host))
            || address.is_some_and(|address| addresses.contains(&address));
        if matches {
            return Ok(());
        }
        names.extend(addresses.iter().map(IpAddr::to_string));
        Err(Problem::Name {
            names: if names.is_empty() {
                "no name".to_owned()
            } else {
                names.join(", ")
            },
            host: host.to_owned(),
        }
        .into())
    }

    fn common_name(&self) -> Option<String> {
        let parts = self.fields().subject.0.iter();
        let name = parts
            .flat_map(|part| part.0.iter())
            .find(|part| part.oid == CN)?;
        String::from_utf8(name.value.value().to_owned()).ok()
    }
}

fn ip_address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(octets) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(octets).ok().map(IpAddr::from)
}

/// A wildcard stands for the whole first label.
fn name_matches(pattern: &str, host: &str) -> bool {
    if pattern.contains('\0') {
        return false;
    }
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (Some(pattern), Some((label, rest))) if !pattern.is_empty() && !label.is_empty() => {
            pattern.eq_ignore_ascii_case(rest)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_one_label() {
        for (pattern, host, matches) in [
            ("db.example.com", "DB.example.com", true),
            ("*.example.com", "db.example.com", true),
            ("*.example.com", "a.db.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*", "localhost", false),
            ("*.", "localhost.", false),
            ("d*.example.com", "db.example.com", false),
            ("db\0.example.com", "db\0.example.com", false),
        ] {
            assert_eq!(name_matches(pattern, host), matches, "{pattern} {host}");
        }
    }
}
