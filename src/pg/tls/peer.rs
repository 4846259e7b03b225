//! What a handshake has shown of the server: for operators, not for decisions.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;

use super::{TlsError, TlsParams, certificates};
use crate::pg::certificate::Certificate;

/// The server at the other end of a TLS connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// `TLSv1.2` or `TLSv1.3`.
    pub(crate) version: &'static str,
    /// When its certificate expires, seconds since the epoch; none if the certificate cannot be parsed.
    pub(crate) expires_secs: Option<u64>,
}

/// The peer of the last handshake. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Record(Arc<Mutex<Option<Peer>>>);

impl Record {
    pub(super) fn set(&self, version: &'static str, certificate: &CertificateDer<'_>) {
        let peer = Peer {
            version,
            expires_secs: expiry(certificate),
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(peer);
    }

    pub(super) fn get(&self) -> Option<Peer> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TlsParams {
    /// The client's certificate, and when it expires, seconds since the epoch; none if none is sent.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn client_certificate(&self) -> Result<Option<(&Path, Option<u64>)>, TlsError> {
        let Some(path) = &self.cert_path else {
            return Ok(None);
        };
        let chain = certificates("the client certificate", path)?;
        Ok(Some((path, chain.first().and_then(expiry))))
    }
}

fn expiry(certificate: &CertificateDer<'_>) -> Option<u64> {
    Some(Certificate::parse(certificate).ok()?.expires_secs())
}
