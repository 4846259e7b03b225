//! TLS to the server, by the modes of libpq.
//!
//! As in libpq, trusted certificates given with any mode are verified against, `verify-full` verifies
//! the host name too, and without trusted certificates `allow`, `prefer` and `require` accept any
//! certificate. The files are read for each connection, so that they may be renewed under a running
//! process.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio_postgres::Socket;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::certificate::{self, Certificate, Problem};

/// The TLS parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsParams {
    pub(crate) mode: TlsMode,
    /// `sslnegotiation=direct`: TLS from the first byte on, as of PostgreSQL 17.
    pub(crate) direct: bool,
    /// The client's certificate, PEM.
    pub(crate) cert_path: Option<PathBuf>,
    /// The client's key, PEM.
    pub(crate) key_path: Option<PathBuf>,
    /// Certificates to trust, PEM; without one, the system's.
    pub(crate) root_cert_path: Option<PathBuf>,
    /// Revoked certificates, PEM.
    pub(crate) crl_path: Option<PathBuf>,
    /// Whether the host name is sent in the clear, for proxies that route by it.
    pub(crate) sni: bool,
    pub(crate) tls12: bool,
    pub(crate) tls13: bool,
}

/// When to use TLS, and how the server must authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsMode {
    /// No TLS.
    Disable,
    /// No TLS, unless the server requires it.
    Allow,
    /// TLS, unless the server refuses it.
    Prefer,
    /// TLS.
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
    /// A file cannot be read as PEM.
    #[error("cannot read {what} from {}", path.display())]
    File {
        /// What the file should contain.
        what: &'static str,
        /// The path.
        path: PathBuf,
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

/// The system's trusted certificates, which take a while to read.
static SYSTEM_ROOTS: LazyLock<Vec<CertificateDer<'static>>> =
    LazyLock::new(|| rustls_native_certs::load_native_certs().certs);

impl TlsParams {
    /// The connector for the driver.
    ///
    /// # Errors
    /// If a file cannot be used.
    pub(crate) fn connector(&self) -> Result<Tls, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions: Vec<_> = [
            self.tls12.then_some(&rustls::version::TLS12),
            self.tls13.then_some(&rustls::version::TLS13),
        ]
        .into_iter()
        .flatten()
        .collect();
        let verifier = Verifier {
            chain: self.chain(&provider)?,
            verify_name: self.mode == TlsMode::VerifyFull,
            provider: provider.clone(),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match (&self.cert_path, &self.key_path) {
            _ if self.mode == TlsMode::Disable => builder.with_no_client_auth(),
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
        config.enable_sni = self.sni;
        if self.direct {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(Tls {
            inner: MakeRustlsConnect::new(config),
            used: Arc::default(),
        })
    }

    /// How to verify the server's certificate; none where any is accepted.
    fn chain(&self, provider: &Arc<CryptoProvider>) -> Result<Option<Chain>, TlsError> {
        let roots = match (&self.root_cert_path, self.mode) {
            (_, TlsMode::Disable) => return Ok(None),
            (Some(path), _) => certificates("trusted certificates", path)?,
            (None, TlsMode::VerifyCa | TlsMode::VerifyFull) => SYSTEM_ROOTS.clone(),
            (None, _) => return Ok(None),
        };
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.iter().cloned());
        let mut builder =
            WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone());
        if let Some(path) = &self.crl_path {
            let lists = CertificateRevocationListDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|source| TlsError::File {
                    what: "the revocation list",
                    path: path.clone(),
                    source,
                })?;
            builder = builder.with_crls(lists);
        }
        Ok(Some(Chain {
            webpki: builder.build()?,
            roots,
            revocation: self.crl_path.is_some(),
        }))
    }
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|source| TlsError::File {
            what,
            path: path.to_owned(),
            source,
        })
}

/// The driver's TLS connector. Records whether the server accepted TLS.
#[derive(Clone)]
pub(crate) struct Tls {
    inner: MakeRustlsConnect,
    used: Arc<AtomicBool>,
}

impl Tls {
    /// The same connector for the next attempt.
    pub(crate) fn unused(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            used: Arc::default(),
        }
    }

    /// Whether a handshake began.
    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }
}

type RustlsConnect = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;

impl MakeTlsConnect<Socket> for Tls {
    type Stream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;
    type TlsConnect = Handshake;
    type Error = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Error;

    fn make_tls_connect(&mut self, host: &str) -> Result<Handshake, Self::Error> {
        Ok(Handshake {
            inner: MakeTlsConnect::<Socket>::make_tls_connect(&mut self.inner, host)?,
            used: Arc::clone(&self.used),
        })
    }
}

/// One handshake.
pub(crate) struct Handshake {
    inner: RustlsConnect,
    used: Arc<AtomicBool>,
}

impl TlsConnect<Socket> for Handshake {
    type Stream = <RustlsConnect as TlsConnect<Socket>>::Stream;
    type Error = HandshakeError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, HandshakeError>> + Send>>;

    fn connect(self, stream: Socket) -> Self::Future {
        self.used.store(true, Ordering::Relaxed);
        let handshake = self.inner.connect(stream);
        Box::pin(async move { handshake.await.map_err(HandshakeError::new) })
    }
}

/// A TLS handshake that failed, with what to do about it where that is known.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct HandshakeError(String);

impl HandshakeError {
    fn new(error: std::io::Error) -> Self {
        let cause = error
            .get_ref()
            .and_then(|cause| cause.downcast_ref::<rustls::Error>());
        Self(cause.map_or_else(|| error.to_string(), describe))
    }
}

fn describe(error: &rustls::Error) -> String {
    let rustls::Error::InvalidCertificate(error) = error else {
        return error.to_string();
    };
    match error {
        CertificateError::UnknownIssuer => {
            "no trusted authority signed the server's certificate: set sslrootcert to the \
             certificate of the authority, or to the server's own certificate if it is self-signed"
                .to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate or that of its authority has expired: renew it".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate or that of its authority is not valid yet: check the clocks"
                .to_owned()
        }
        CertificateError::Revoked => "the server's certificate is revoked".to_owned(),
        CertificateError::Other(other) => match other.0.downcast_ref::<Problem>() {
            Some(problem) => problem.to_string(),
            None => format!("the server's certificate is invalid: {error}"),
        },
        error => format!("the server's certificate is invalid: {error}"),
    }
}

/// The trusted certificates.
#[derive(Debug)]
struct Chain {
    webpki: Arc<WebPkiServerVerifier>,
    roots: Vec<CertificateDer<'static>>,
    /// Whether revocation is checked.
    revocation: bool,
}

/// Verifies as libpq does with OpenSSL. Signatures are always verified, so the peer has at least the
/// key of its certificate.
#[derive(Debug)]
struct Verifier {
    chain: Option<Chain>,
    verify_name: bool,
    provider: Arc<CryptoProvider>,
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
        match self
            .webpki
            .verify_server_cert(end_entity, intermediates, server_name, &[], now)
        {
            // The chain is verified before the name.
            Ok(_)
            | Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(()),
            Err(error) => Err(error),
        }
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
