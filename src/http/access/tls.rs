//! The certificate of a listener.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_cert::der::Decode as _;

/// A certificate with its key, as the parameters of a TLS server.
#[derive(Debug)]
pub(super) struct Certificate {
    /// With a session cache of its own: a session that began with the previous certificate cannot be
    /// resumed.
    config: Arc<ServerConfig>,
    expiry_secs: f64,
}

impl Certificate {
    /// Reads the certificate with its chain, and the key.
    pub(super) fn parse(paths: &[PathBuf], contents: &[Vec<u8>]) -> anyhow::Result<Self> {
        let ([cert_path, key_path], [cert, key]) = (paths, contents) else {
            anyhow::bail!("a certificate needs a file and a key");
        };
        let chain = CertificateDer::pem_slice_iter(cert)
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("{} is not valid PEM", cert_path.display()))?;
        ensure!(
            !chain.is_empty(),
            "{} contains no certificate in PEM",
            cert_path.display()
        );
        let expiry_secs = expiry_secs(&chain[0])
            .with_context(|| format!("cannot parse the certificate in {}", cert_path.display()))?;
        let key = PrivateKeyDer::from_pem_slice(key).with_context(|| {
            format!(
                "{} contains no private key in PEM without a passphrase",
                key_path.display()
            )
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("the provider supports TLS 1.2 and 1.3")?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .with_context(|| {
                format!(
                    "the certificate in {} and the key in {} cannot be used together",
                    cert_path.display(),
                    key_path.display()
                )
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            expiry_secs,
        })
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// When it expires, seconds since the epoch.
    pub(super) fn expiry_secs(&self) -> f64 {
        self.expiry_secs
    }
}

fn expiry_secs(certificate: &CertificateDer<'_>) -> anyhow::Result<f64> {
    let parsed = x509_cert::Certificate::from_der(certificate)?;
    let expiry = parsed.tbs_certificate.validity.not_after;
    Ok(expiry.to_unix_duration().as_secs_f64())
}
