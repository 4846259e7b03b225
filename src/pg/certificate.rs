//! What libpq accepts of a server's certificate and webpki does not.
//!
//! Owns two rules: the comparison of names (`pq_verify_peer_name_matches_certificate` of libpq, which
//! falls back to the common name), and the verification of a certificate that one of the trusted
//! certificates signed directly, for the two forms that PostgreSQL's own instructions produce and webpki
//! refuses for a server: a certificate of an authority (`CA:TRUE`), mostly self-signed, and a certificate
//! of version 1.

use std::net::IpAddr;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct};
use x509_cert::TbsCertificate;
use x509_cert::certificate::Version;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier};
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::oid::db::rfc4519::CN;
use x509_cert::der::oid::db::rfc5280::ID_KP_SERVER_AUTH;
use x509_cert::der::{Decode, Encode, Reader as _, SliceReader};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, NameConstraints, SubjectAltName,
};

/// Why a certificate is refused, and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error(
        "the server's certificate is valid for {names}, not for {host}: connect by a name of the \
         certificate, or use sslmode=verify-ca"
    )]
    Name { names: String, host: String },
    #[error(
        "the server's certificate is that of an authority (CA:TRUE) or of version 1, and no trusted \
         certificate signed it: set sslrootcert to the certificate that signed it, or to the \
         server's own certificate if it is self-signed"
    )]
    NotIssuedByRoot,
    #[error("the server's certificate is not for a TLS server: issue it with serverAuth")]
    Purpose,
    #[error("the server's certificate has a critical extension that is not supported: {0}")]
    Critical(ObjectIdentifier),
}

/// Not a certificate.
#[derive(Debug)]
pub(crate) struct Malformed;

impl From<x509_cert::der::Error> for Malformed {
    fn from(_: x509_cert::der::Error) -> Self {
        Self
    }
}

/// A parsed certificate.
pub(crate) struct Certificate<'a> {
    parsed: x509_cert::Certificate,
    der: &'a [u8],
}

impl<'a> Certificate<'a> {
    pub(crate) fn parse(der: &'a CertificateDer<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            parsed: x509_cert::Certificate::from_der(der)?,
            der,
        })
    }

    fn fields(&self) -> &TbsCertificate {
        &self.parsed.tbs_certificate
    }

    fn extension<T>(&self) -> Result<Option<T>, Malformed>
    where
        T: for<'b> Decode<'b> + AssociatedOid,
    {
        Ok(self.fields().get::<T>()?.map(|(_, value)| value))
    }

    pub(crate) fn is_version_3(&self) -> bool {
        self.fields().version == Version::V3
    }

    fn is_authority(&self) -> bool {
        matches!(self.extension::<BasicConstraints>(), Ok(Some(constraints)) if constraints.ca)
    }

    /// Whether webpki refuses it for its form.
    pub(crate) fn is_beyond_webpki(&self) -> bool {
        !self.is_version_3() || self.is_authority()
    }

    pub(crate) fn public_key(&self) -> Result<SubjectPublicKeyInfoDer<'static>, Malformed> {
        Ok(self.fields().subject_public_key_info.to_der()?.into())
    }

    /// Verifies that one of these certificates, or this certificate as one of them, signed it, and that
    /// it is for a server. The rules are those of OpenSSL for a chain without intermediate certificates.
    pub(crate) fn verify_issued_by(
        &self,
        roots: &[CertificateDer<'_>],
        provider: &CryptoProvider,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        self.verify_time(now)?;
        self.verify_purpose()?;
        let algorithms = &provider.signature_verification_algorithms;
        for root in roots {
            let Ok(root) = Certificate::parse(root) else {
                continue;
            };
            if root.can_have_signed(self) && self.is_signed_with(&root, algorithms)? {
                return root.verify_time(now);
            }
        }
        Err(Problem::NotIssuedByRoot.into())
    }

    fn verify_time(&self, now: UnixTime) -> Result<(), rustls::Error> {
        let validity = &self.fields().validity;
        if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
            return Err(CertificateError::NotValidYet.into());
        }
        if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
            return Err(CertificateError::Expired.into());
        }
        Ok(())
    }

    fn verify_purpose(&self) -> Result<(), rustls::Error> {
        for extension in self.fields().extensions.iter().flatten() {
            let known = [
                BasicConstraints::OID,
                KeyUsage::OID,
                ExtendedKeyUsage::OID,
                SubjectAltName::OID,
            ];
            if extension.critical && !known.contains(&extension.extn_id) {
                return Err(Problem::Critical(extension.extn_id).into());
            }
        }
        let usage_allows = self.extension::<KeyUsage>()?.is_none_or(|usage| {
            [
                KeyUsages::DigitalSignature,
                KeyUsages::KeyEncipherment,
                KeyUsages::KeyAgreement,
            ]
            .iter()
            .any(|needed| usage.0.contains(*needed))
        });
        let purposes = self.extension::<ExtendedKeyUsage>()?;
        let serves = purposes.is_none_or(|purposes| purposes.0.contains(&ID_KP_SERVER_AUTH));
        if usage_allows && serves {
            Ok(())
        } else {
            Err(Problem::Purpose.into())
        }
    }

    fn can_have_signed(&self, other: &Certificate<'_>) -> bool {
        if self.fields().subject != other.fields().issuer {
            return false;
        }
        if self.der == other.der {
            return true;
        }
        let constrains_names = self.extension::<NameConstraints>();
        let signs = self
            .extension::<KeyUsage>()
            .is_ok_and(|usage| usage.is_none_or(|usage| usage.0.contains(KeyUsages::KeyCertSign)));
        // A root of version 1 has no extension that could say so.
        signs
            && matches!(constrains_names, Ok(None))
            && (self.is_authority() || !self.is_version_3())
    }

    fn is_signed_with(
        &self,
        issuer: &Certificate<'_>,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<bool, Malformed> {
        let key = &issuer.fields().subject_public_key_info;
        let key_algorithm = key.algorithm.to_der()?;
        let signature_algorithm = self.parsed.signature_algorithm.to_der()?;
        let mut reader = SliceReader::new(AnyRef::from_der(self.der)?.value())?;
        let signed = reader.tlv_bytes()?;
        Ok(algorithms.all.iter().any(|algorithm| {
            is_algorithm(&key_algorithm, &algorithm.public_key_alg_id())
                && is_algorithm(&signature_algorithm, &algorithm.signature_alg_id())
                && algorithm
                    .verify_signature(
                        key.subject_public_key.raw_bytes(),
                        signed,
                        self.parsed.signature.raw_bytes(),
                    )
                    .is_ok()
        }))
    }

    /// The same as rustls's, which parses only certificates of version 3.
    pub(crate) fn verify_tls12_signature(
        &self,
        message: &[u8],
        dss: &DigitallySignedStruct,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = &self.fields().subject_public_key_info;
        let key_algorithm = key.algorithm.to_der().map_err(Malformed::from)?;
        let schemes = algorithms.mapping.iter();
        let of_scheme = schemes.filter(|(scheme, _)| *scheme == dss.scheme);
        let valid = of_scheme.flat_map(|(_, all)| all.iter()).any(|algorithm| {
            is_algorithm(&key_algorithm, &algorithm.public_key_alg_id())
                && algorithm
                    .verify_signature(key.subject_public_key.raw_bytes(), message, dss.signature())
                    .is_ok()
        });
        if valid {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(CertificateError::BadSignature.into())
        }
    }

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

/// An algorithm's identifier is compared without its outer header.
fn is_algorithm(der: &[u8], id: &[u8]) -> bool {
    AnyRef::from_der(der).is_ok_and(|any| any.value() == id)
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
