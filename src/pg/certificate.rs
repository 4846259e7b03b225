//! What libpq accepts of a server's certificate and webpki does not.
//!
//! Owns two rules: the comparison of names (`pq_verify_peer_name_matches_certificate` of libpq, which
//! falls back to the common name), and the verification of a certificate that one of the trusted
//! certificates signed directly, for the two forms that PostgreSQL's own instructions produce and webpki
//! refuses for a server: a certificate of an authority (`CA:TRUE`), mostly self-signed, and a certificate
//! of version 1.

mod issuer;
mod name;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::{CertificateError, DigitallySignedStruct};
use x509_cert::TbsCertificate;
use x509_cert::certificate::Version;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier};
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::BasicConstraints;

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

    /// When it expires, seconds since the epoch.
    pub(crate) fn expires_secs(&self) -> u64 {
        let validity = &self.fields().validity;
        validity.not_after.to_unix_duration().as_secs()
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
}

/// An algorithm's identifier is compared without its outer header.
fn is_algorithm(der: &[u8], id: &[u8]) -> bool {
    AnyRef::from_der(der).is_ok_and(|any| any.value() == id)
}
