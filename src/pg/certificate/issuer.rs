//! Verifies a certificate that one of the trusted certificates signed directly.
//!
//! The rules are those of OpenSSL for a chain without intermediate certificates.

use rustls::CertificateError;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_cert::der::asn1::AnyRef;
use x509_cert::der::oid::AssociatedOid as _;
use x509_cert::der::oid::db::rfc5280::ID_KP_SERVER_AUTH;
use x509_cert::der::{Decode as _, Encode as _, Reader as _, SliceReader};
use x509_cert::ext::pkix::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, NameConstraints, SubjectAltName,
};

use super::{Certificate, Malformed, Problem, is_algorithm};

impl Certificate<'_> {
    /// Verifies that one of these certificates, or this certificate as one of them, signed it, and that
    /// it is for a server.
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

    /// Whether it is valid now: neither expired nor of the future.
    pub(crate) fn verify_time(&self, now: UnixTime) -> Result<(), rustls::Error> {
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
}
