//! TLS to the server, by the modes of libpq.
//!
//! As in libpq, trusted certificates given with any mode are verified against, `verify-full` verifies
//! the host name too, and without trusted certificates `allow`, `prefer` and `require` accept any
//! certificate. The files are read for each connection, so that they may be renewed under a running
//! process.

mod handshake;
mod peer;
mod verifier;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};

use super::certificate::Certificate;
use verifier::{Chain, Current, Verifier};

pub(crate) use handshake::{HandshakeError, Tls};
pub(crate) use peer::Peer;
use peer::Record;

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

impl TlsMode {
    /// The name of the mode in `sslmode`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
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
    /// The key of the client certificate could be read by others.
    #[error(
        "the client key {} is accessible to group or others: its permissions must be 0600 or less, or \
         0640 or less if root owns it",
        .0.display()
    )]
    KeyPermissions(PathBuf),
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
        let peer = Record::default();
        let verifier = Verifier {
            peer: peer.clone(),
            chain: self.chain(&provider)?,
            verify_name: self.mode == TlsMode::VerifyFull,
            provider: provider.clone(),
        };
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match (&self.cert_path, &self.key_path) {
            _ if self.mode == TlsMode::Disable => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                if is_exposed(key) {
                    return Err(TlsError::KeyPermissions(key.clone()));
                }
                let key_der =
                    PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::File {
                        what: "the client key",
                        path: key.clone(),
                        source,
                    })?;
                let chain = certificates("the client certificate", cert)?;
                let resolver = client_certificate(chain, key_der, &provider)?;
                builder.with_client_cert_resolver(Arc::new(resolver))
            }
            (None, None) => builder.with_no_client_auth(),
            _ => return Err(TlsError::Pair),
        };
        config.enable_sni = self.sni;
        if self.direct {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(Tls::new(config, peer))
    }

    /// Whether the server must have a certificate of a trusted authority.
    pub(crate) fn verifies(&self) -> bool {
        match self.mode {
            TlsMode::Disable => false,
            TlsMode::VerifyCa | TlsMode::VerifyFull => true,
            TlsMode::Allow | TlsMode::Prefer | TlsMode::Require => self.root_cert_path.is_some(),
        }
    }

    /// How to verify the server's certificate; none where any is accepted.
    fn chain(&self, provider: &Arc<CryptoProvider>) -> Result<Option<Chain>, TlsError> {
        if !self.verifies() {
            return Ok(None);
        }
        let roots = match &self.root_cert_path {
            Some(path) => certificates("trusted certificates", path)?,
            None => SYSTEM_ROOTS.clone(),
        };
        let now = UnixTime::now();
        let current: Vec<_> = roots
            .iter()
            .filter(|root| {
                !Certificate::parse(root).is_ok_and(|root| root.verify_time(now).is_err())
            })
            .cloned()
            .collect();
        let all_current = current.len() == roots.len();
        Ok(Some(Chain {
            webpki: self.webpki(&roots, provider)?,
            current: match current.as_slice() {
                _ if all_current => Current::All,
                [] => Current::None,
                current => Current::Some(self.webpki(current, provider)?),
            },
            roots,
            revocation: self.crl_path.is_some(),
        }))
    }

    fn webpki(
        &self,
        roots: &[CertificateDer<'static>],
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
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
        Ok(builder.build()?)
    }
}

/// A certificate with its key. rustls itself accepts no certificate of version 1, which is what
/// `openssl x509 -req` makes of a request without extensions.
fn client_certificate(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<SingleCertAndKey, rustls::Error> {
    let key = provider.key_provider.load_private_key(key)?;
    let first = chain
        .first()
        .ok_or(rustls::Error::NoCertificatesPresented)?;
    let public_key = Certificate::parse(first)?.public_key()?;
    if key.public_key().is_some_and(|own| own != public_key) {
        return Err(rustls::InconsistentKeys::KeyMismatch.into());
    }
    Ok(CertifiedKey::new(chain, key).into())
}

/// Whether others could read a key, by the rule of libpq. Root's key may be readable by a group, as
/// Kubernetes mounts a Secret for a group.
fn is_exposed(key: &Path) -> bool {
    let Ok(metadata) = std::fs::metadata(key) else {
        // Reading it reports the reason.
        return false;
    };
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    metadata.is_file() && metadata.mode() & forbidden != 0
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
