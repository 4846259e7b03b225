//! Who may use a listener: its certificate, and the tokens that it accepts.
//!
//! Owns the files of a listener and what was last read from them. Promises that a changed file is used
//! within [`INTERVAL`] without a restart, that one that cannot be used leaves the previous content in
//! use, and that tokens are kept as digests only. The commands load it at the start, the daemon runs
//! [`follow`], and both listeners ask it for each connection and each request.

mod file;
mod tls;
mod tokens;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use crate::error::chain;
use crate::metrics::{Credential, Metrics};
use file::{FileBacked, Refreshed};
use tls::Certificate;
use tokens::Tokens;

/// How often the files are read.
const INTERVAL: Duration = Duration::from_secs(1);

/// The files of a listener.
#[derive(Debug, Clone, Default)]
pub struct AccessFiles {
    /// The certificate with its chain, and its key: both PEM. Without them the listener serves plain
    /// HTTP.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The tokens that it accepts, one a line. Without it, no request needs one.
    pub tokens: Option<PathBuf>,
}

/// Who may use a listener; by default everybody, over plain HTTP. A clone shares what is read.
#[derive(Debug, Clone, Default)]
pub struct Access {
    tls: Option<Arc<FileBacked<Certificate>>>,
    tokens: Option<Arc<FileBacked<Tokens>>>,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It has no bearer token.
    Missing,
    /// Its token is not one of those accepted.
    Wrong,
}

impl Refusal {
    /// The header of the answer, by RFC 6750.
    pub(crate) fn challenge(self) -> (HeaderName, HeaderValue) {
        let value = match self {
            Self::Missing => "Bearer realm=\"status-indexer\"",
            Self::Wrong => "Bearer realm=\"status-indexer\", error=\"invalid_token\"",
        };
        (WWW_AUTHENTICATE, HeaderValue::from_static(value))
    }

    /// What the client has to change.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Missing => "this request needs a bearer token",
            Self::Wrong => "the bearer token is not valid",
        }
    }
}

impl Access {
    /// Reads the files.
    ///
    /// # Errors
    /// If one cannot be used; the message names it, and contains nothing of its content.
    pub fn load(files: AccessFiles) -> anyhow::Result<Self> {
        let tls = match files.tls {
            Some((cert, key)) => Some(FileBacked::load(vec![cert, key], Certificate::parse)?),
            None => None,
        };
        let tokens = match files.tokens {
            Some(path) => Some(FileBacked::load(vec![path], Tokens::parse)?),
            None => None,
        };
        Ok(Self {
            tls: tls.map(Arc::new),
            tokens: tokens.map(Arc::new),
        })
    }

    /// Whether any file has to be followed.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.tls.is_some() || self.tokens.is_some()
    }

    /// The parameters of TLS as they are now; none for plain HTTP.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        Some(self.tls.as_ref()?.current().config())
    }

    /// Checks the token of a request, if one is needed.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(tokens) = &self.tokens else {
            return Ok(());
        };
        match bearer(headers) {
            None => Err(Refusal::Missing),
            Some(token) if tokens.current().accept(token) => Ok(()),
            Some(_) => Err(Refusal::Wrong),
        }
    }

    /// Whether requests need a token.
    pub(crate) fn needs_token(&self) -> bool {
        self.tokens.is_some()
    }

    /// Warns if tokens would cross a network unencrypted.
    pub fn warn_if_exposed(&self, listener: &str, addr: SocketAddr) {
        if self.tokens.is_some() && self.tls.is_none() && !addr.ip().is_loopback() {
            tracing::warn!(
                listener,
                addr = %addr,
                "tokens are sent without encryption: set --{0}-tls-cert and --{0}-tls-key, or listen \
                 on a loopback address behind a proxy with TLS",
                flags(listener)
            );
        }
    }

    /// Reads the files again, and says what changed.
    fn refresh(&self, listener: &'static str, metrics: &Metrics) {
        if let Some(tls) = &self.tls {
            report(listener, Credential::Certificate, tls.refresh(), metrics);
            let expiry = tls.current().expiry_secs();
            metrics
                .tls_certificate_expiry_timestamp_seconds
                .with_label_values(&[listener])
                .set(expiry);
        }
        if let Some(tokens) = &self.tokens {
            report(listener, Credential::Tokens, tokens.refresh(), metrics);
        }
    }
}

/// The beginning of the names of a listener's flags.
fn flags(listener: &str) -> &str {
    if listener == "api" { "http" } else { listener }
}

/// Follows the files of both listeners until `stop`.
pub async fn follow(
    listeners: [(&'static str, Access); 2],
    metrics: Metrics,
    stop: CancellationToken,
) {
    let listeners = Arc::new(listeners);
    loop {
        let (reading, metrics) = (Arc::clone(&listeners), metrics.clone());
        // A file system may hang, which must not hold up the runtime.
        let read = tokio::task::spawn_blocking(move || {
            for (listener, access) in reading.iter() {
                access.refresh(listener, &metrics);
            }
        });
        let turn = async {
            // A panic while parsing a file leaves the previous content in use.
            let _ = read.await;
            tokio::time::sleep(INTERVAL).await;
        };
        if stop.run_until_cancelled(turn).await.is_none() {
            return;
        }
    }
}

fn report(listener: &'static str, credential: Credential, refreshed: Refreshed, metrics: &Metrics) {
    let stale = metrics
        .credentials_stale
        .with_label_values(&[listener, credential.name()]);
    match refreshed {
        Refreshed::Unchanged => {}
        Refreshed::Replaced => {
            stale.set(0);
            tracing::info!(
                listener,
                credential = credential.name(),
                "a changed file is in use"
            );
        }
        Refreshed::Failed(error) => {
            stale.set(1);
            tracing::warn!(
                listener,
                credential = credential.name(),
                error = chain(error.as_ref()),
                "a changed file cannot be used; its previous content remains in use"
            );
        }
    }
}

/// The bearer token of a request. None if it has several `Authorization` headers: they could mean
/// one thing to a proxy and another here.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next()?.as_bytes();
    if values.next().is_some() {
        return None;
    }
    let (scheme, token) = value.split_at_checked(SCHEME.len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(SCHEME) && !token.is_empty()).then_some(token)
}

const SCHEME: &[u8] = b"bearer ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_token_is_read_from_exactly_one_header() {
        let read = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, HeaderValue::from_static(value));
            }
            bearer(&headers).map(|token| String::from_utf8_lossy(token).into_owned())
        };
        assert_eq!(read(&["Bearer abc"]).as_deref(), Some("abc"));
        assert_eq!(read(&["bEARER  abc "]).as_deref(), Some("abc"));
        for none in [
            &[][..],
            &["abc"],
            &["Bearer"],
            &["Bearer "],
            &["Basic abc"],
            &["Bearerabc"],
            &["Bearer abc", "Bearer abc"],
        ] {
            assert_eq!(read(none), None, "{none:?}");
        }
    }

    #[test]
    fn without_files_no_request_needs_a_token() {
        assert_eq!(Access::default().check(&HeaderMap::new()), Ok(()));
    }

    #[test]
    fn a_request_is_refused_with_a_challenge() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("tokens");
        std::fs::write(&path, "0123456789abcdef\n").expect("writable");
        let files = AccessFiles {
            tls: None,
            tokens: Some(path),
        };
        let access = Access::load(files).expect("valid");
        let mut headers = HeaderMap::new();
        assert_eq!(access.check(&headers), Err(Refusal::Missing));
        let mut send = |value| {
            headers.insert(AUTHORIZATION, HeaderValue::from_static(value));
            access.check(&headers)
        };
        assert_eq!(send("Bearer 0123456789abcdeF"), Err(Refusal::Wrong));
        assert_eq!(send("Bearer 0123456789abcdef"), Ok(()));
        let (name, value) = Refusal::Wrong.challenge();
        assert_eq!(name, WWW_AUTHENTICATE);
        assert!(value.to_str().is_ok_and(|text| text.starts_with("Bearer ")));
    }
}
