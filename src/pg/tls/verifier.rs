//! Verifies the server's certificate as libpq does with OpenSSL.
//!
//! webpki verifies the chain, except for the forms that it never accepts; `certificate` verifies those,
//! and the host name. rustls calls [`Verifier`] in each handshake.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};

use super::peer::Record;
use crate::pg::certificate::{self, Certificate, Problem};

/// Which of the trusted certificates are valid now. webpki does not check it: it takes them for names and
/// keys.
#[derive(Debug)]
pub(super) enum Current {
    All,
    Some(Arc<WebPkiServerVerifier>),
    None,
}

/// The trusted certificates.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) webpki: Arc<WebPkiServerVerifier>,
    pub(super) current: Current,
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// Whether revocation is checked.
    pub(super) revocation: bool,
}

/// Verifies as libpq does with OpenSSL. Signatures are always verified, so the peer has at least the
/// key of its certificate.
#[derive(Debug)]
pub(super) struct Verifier {
    /// Receives what is seen of the server.
    pub(super) peer: Record,
    pub(super) chain: Option<Chain>,
    pub(super) verify_name: bool,
    pub(super) provider: Arc<CryptoProvider>,
}

impl Chain {
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        provider: &CryptoProvider,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        // Forms that OpenSSL accepts for a server and webpki never does. Their revocation cannot be
        // checked here.
        if !self.revocation
            && let Ok(parsed) = Certificate::parse(end_entity)
            && parsed.is_beyond_webpki()
        {
            return parsed.verify_issued_by(&self.roots, provider, now);
        }
        let verify = |webpki: &WebPkiServerVerifier| {
            match webpki.verify_server_cert(end_entity, intermediates, server_name, &[], now) {
                // The chain is verified before the name.
                Ok(_)
                | Err(rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. },
                )) => Ok(()),
                Err(error) => Err(error),
            }
        };
        verify(&self.webpki)?;
        let without_expired = match &self.current {
            Current::All => Ok(()),
            Current::Some(webpki) => verify(webpki),
            Current::None => Err(CertificateError::UnknownIssuer.into()),
        };
        // Only its authority, which has expired, signed it.
        without_expired.map_err(|_| CertificateError::Expired.into())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(chain) = &self.chain {
            chain.verify(end_entity, intermediates, server_name, &self.provider, now)?;
        }
        if self.verify_name {
            Certificate::parse(end_entity)?.verify_name(&server_name.to_str())?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.peer.set("TLSv1.2", cert);
        let algorithms = &self.provider.signature_verification_algorithms;
        match Certificate::parse(cert) {
            Ok(parsed) if !parsed.is_version_3() => {
                parsed.verify_tls12_signature(message, dss, algorithms)
            }
            _ => rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.peer.set("TLSv1.3", cert);
        let algorithms = &self.provider.signature_verification_algorithms;
        match Certificate::parse(cert) {
            Ok(parsed) if !parsed.is_version_3() => {
                let key = parsed.public_key()?;
                rustls::crypto::verify_tls13_signature_with_raw_key(message, &key, dss, algorithms)
            }
            _ => rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl From<Problem> for rustls::Error {
    fn from(problem: Problem) -> Self {
        let other = rustls::OtherError(Arc::new(problem));
        Self::InvalidCertificate(CertificateError::Other(other))
    }
}

impl From<certificate::Malformed> for rustls::Error {
    fn from(_: certificate::Malformed) -> Self {
        Self::InvalidCertificate(CertificateError::BadEncoding)
    }
}
