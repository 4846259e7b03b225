//! TLS to the server, by the modes of libpq.
//!
//! `allow`, `prefer` and `require` accept any certificate (`require` with a root certificate means
//! `verify-ca`, as in libpq); `verify-ca` verifies the chain; `verify-full` also the host name.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

/// The TLS parameters as given, under the names of libpq.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsParams {
    /// `sslmode`.
    pub mode: Option<String>,
    /// `sslcert`: the client's certificate, PEM.
    pub cert_path: Option<String>,
    /// `sslkey`: the client's key, PEM.
    pub key_path: Option<String>,
    /// `sslrootcert`: certificates to trust, PEM; without one, the system's.
    pub root_cert_path: Option<String>,
}

/// How the server must authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// No TLS.
    Disable,
    /// TLS if the server offers it, any certificate.
    Prefer,
    /// TLS, any certificate.
    Require,
    /// TLS with a certificate of a trusted authority.
    VerifyCa,
    /// TLS with a certificate of a trusted authority for this host.
    VerifyFull,
}

/// TLS parameters that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// An unknown mode.
    #[error("unknown sslmode {0:?}: use disable, allow, prefer, require, verify-ca or verify-full")]
    Mode(String),
    /// A file cannot be read as PEM.
    #[error("cannot read {what} from {path}")]
    File {
        /// What the file should contain.
        what: &'static str,
        /// The path.
        path: String,
        /// The cause.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A client certificate without its key, or a key without its certificate.
    #[error("a client certificate needs both sslcert and sslkey")]
    Pair,
    /// The files do not form a valid configuration.
    #[error("the TLS parameters are not consistent")]
    Rustls(#[from] rustls::Error),
    /// The trusted certificates do not form a valid verifier.
    #[error("no usable trusted certificate: give one with sslrootcert")]
    Roots(#[from] rustls::client::VerifierBuilderError),
}

impl TlsParams {
    /// The mode.
    ///
    /// # Errors
    /// If `sslmode` is not one of libpq's modes.
    pub fn mode(&self) -> Result<TlsMode, TlsError> {
        match self.mode.as_deref() {
            Some("disable") => Ok(TlsMode::Disable),
            None | Some("" | "allow" | "prefer") => Ok(TlsMode::Prefer),
            Some("require") if self.root_cert_path.is_some() => Ok(TlsMode::VerifyCa),
            Some("require") => Ok(TlsMode::Require),
            Some("verify-ca") => Ok(TlsMode::VerifyCa),
            Some("verify-full") => Ok(TlsMode::VerifyFull),
            Some(other) => Err(TlsError::Mode(other.to_owned())),
        }
    }

    /// The mode and the connector for the driver.
    ///
    /// # Errors
    /// If the mode is unknown or a file cannot be used.
    pub fn connector(&self) -> Result<(SslMode, MakeRustlsConnect), TlsError> {
        let mode = self.mode()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = self.verifier(mode, &provider)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match (&self.cert_path, &self.key_path) {
            (Some(cert), Some(key)) => {
                let key_der =
                    PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::File {
                        what: "the client key",
                        path: key.clone(),
                        source,
                    })?;
                builder
                    .with_client_auth_cert(certificates("the client certificate", cert)?, key_der)?
            }
            (None, None) => builder.with_no_client_auth(),
            _ => return Err(TlsError::Pair),
        };
        let ssl_mode = match mode {
            TlsMode::Disable => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
        };
        Ok((ssl_mode, MakeRustlsConnect::new(config)))
    }

    fn verifier(
        &self,
        mode: TlsMode,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
        if matches!(mode, TlsMode::Disable | TlsMode::Prefer | TlsMode::Require) {
            return Ok(Arc::new(Lenient {
                inner: None,
                provider: provider.clone(),
            }));
        }
        let mut roots = RootCertStore::empty();
        match &self.root_cert_path {
            Some(path) => {
                roots.add_parsable_certificates(certificates("trusted certificates", path)?);
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let strict = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()?;
        if mode == TlsMode::VerifyFull {
            return Ok(strict);
        }
        Ok(Arc::new(Lenient {
            inner: Some(strict),
            provider: provider.clone(),
        }))
    }
}

fn certificates(what: &'static str, path: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|source| TlsError::File {
            what,
            path: path.to_owned(),
            source,
        })
}

/// Accepts a certificate for another host (with `inner`), or any certificate (without). Signatures are
/// always verified, so the peer has at least the key of its certificate.
#[derive(Debug)]
struct Lenient {
    inner: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(strict) = &self.inner else {
            return Ok(ServerCertVerified::assertion());
        };
        match strict.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
