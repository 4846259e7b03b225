//! The driver's TLS connector, and what went wrong in a handshake.
//!
//! Records whether the server accepted TLS, because the fallback of `sslmode=prefer` depends on it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::{CertificateError, ClientConfig};
use tokio_postgres::Socket;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::peer::{Peer, Record};
use crate::pg::certificate::Problem;

/// The driver's TLS connector. Records whether the server accepted TLS.
#[derive(Clone)]
pub(crate) struct Tls {
    inner: MakeRustlsConnect,
    used: Arc<AtomicBool>,
    peer: Record,
}

impl Tls {
    pub(super) fn new(config: ClientConfig, peer: Record) -> Self {
        Self {
            inner: MakeRustlsConnect::new(config),
            used: Arc::default(),
            peer,
        }
    }

    /// The same connector for the next attempt.
    pub(crate) fn unused(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            used: Arc::default(),
            peer: self.peer.clone(),
        }
    }

    /// The server of the last handshake; none if the connection is without TLS.
    pub(crate) fn peer(&self) -> Option<Peer> {
        self.peer.get().filter(|_| self.is_used())
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
