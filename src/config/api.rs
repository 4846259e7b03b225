//! Options of the read API.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use axum::http::HeaderValue;
use clap::Args;

use super::{Listen, defaults, given, listen};
use crate::api::Limits;
use crate::http::AccessFiles;

/// The read API, and the host it reads from.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Read API")]
pub struct ApiArgs {
    /// Address for the read API, if it is on.
    #[arg(
        long,
        help = "Address for the read API; [::]:8081 or :8081 for all interfaces, IPv4 and IPv6; off for none",
        env = "STATUS_INDEXER_HTTP_LISTEN",
        default_value = "127.0.0.1:8081",
        value_name = "ADDR",
        value_parser = listen::address_or_off
    )]
    pub http_listen: Listen,
    /// Certificate of the read API, with its chain, a PEM file that is read again when it changes; makes it
    /// HTTPS
    #[arg(
        long,
        env = "STATUS_INDEXER_HTTP_TLS_CERT",
        value_name = "PATH",
        requires = "http_tls_key"
    )]
    pub http_tls_cert: Option<PathBuf>,
    /// Key of that certificate, a PEM file without a passphrase
    #[arg(
        long,
        env = "STATUS_INDEXER_HTTP_TLS_KEY",
        value_name = "PATH",
        requires = "http_tls_cert"
    )]
    pub http_tls_key: Option<PathBuf>,
    /// Tokens for every request to the read API, one a line, in a file that is read again when it changes
    #[arg(long, env = "STATUS_INDEXER_HTTP_TOKEN_FILE", value_name = "PATH")]
    pub http_token_file: Option<PathBuf>,
    /// Maximum HTTP connections to the read API; fewer if the limit on open files requires it
    #[arg(long, env = "STATUS_INDEXER_MAX_CONNECTIONS", default_value_t = 512, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..))]
    pub max_connections: u16,
    /// Prefix of every path of the read API
    #[arg(long, env = "PATH_PREFIX", default_value = "", hide_default_value = true, value_parser = path_prefix)]
    pub path_prefix: String,
    /// Metadata service version to report in each response; clients decide by the /ping of the
    /// service itself whether to filter and page
    #[arg(
        long,
        env = "STATUS_INDEXER_SERVICE_VERSION",
        default_value = "2.6.1",
        value_name = "VERSION"
    )]
    pub service_version: HeaderValue,
    /// Host for the connections of the read API; all other connection settings stay the same
    #[arg(long, env = "MF_METADATA_DB_READ_REPLICA_HOST", value_name = "HOST")]
    pub read_replica_host: Option<String>,
    /// Whether the read API uses the replica, true or false [default: true if there is one]
    #[arg(long, env = "USE_SEPARATE_READER_POOL", value_name = "BOOL")]
    pub use_separate_reader_pool: Option<String>,
    /// Maximum connections of the read API, in addition to those of the daemon
    #[arg(long, env = "STATUS_INDEXER_READER_POOL_MAX", default_value_t = 8, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub reader_pool_max: u16,
    /// Maximum requests that wait for a connection; further requests get a 503
    #[arg(
        long,
        env = "STATUS_INDEXER_READER_QUEUE_LIMIT",
        default_value_t = 64,
        value_name = "N"
    )]
    pub reader_queue_limit: u16,
    /// Maximum seconds for a read on the server
    #[arg(long, env = "STATUS_INDEXER_READER_STATEMENT_TIMEOUT", default_value_t = 10, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=600))]
    pub reader_statement_timeout: u64,
    /// Maximum seconds for a request, from its head to the end of the answer
    #[arg(long, env = "STATUS_INDEXER_READER_REQUEST_TIMEOUT", default_value_t = 600, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub reader_request_timeout: u64,
    /// Seconds after which a client that takes nothing of its answer is disconnected
    #[arg(long, env = "STATUS_INDEXER_READER_WRITE_TIMEOUT", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub reader_write_timeout: u64,
}

impl ApiArgs {
    /// The defaults, whatever the environment contains.
    #[must_use]
    pub fn defaults() -> Self {
        defaults()
    }

    /// The files that decide who may use the listener.
    #[must_use]
    pub fn access_files(&self) -> AccessFiles {
        let pair = self.http_tls_cert.clone().zip(self.http_tls_key.clone());
        AccessFiles {
            tls: pair,
            tokens: self.http_token_file.clone(),
        }
    }

    /// The replica to read from, if there is one and it is to be used.
    ///
    /// # Errors
    /// If `USE_SEPARATE_READER_POOL` is not a boolean.
    pub fn replica(&self) -> anyhow::Result<Option<&str>> {
        let host = given(self.read_replica_host.as_ref()).map(String::as_str);
        match given(self.use_separate_reader_pool.as_ref()).map(|text| text.to_lowercase()) {
            None => Ok(host),
            Some(text) if text == "1" || text == "true" => Ok(host),
            Some(text) if text == "0" || text == "false" => Ok(None),
            Some(text) => bail!("USE_SEPARATE_READER_POOL is {text:?}: give true or false"),
        }
    }

    /// The limits of the reader.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            pool_max: self.reader_pool_max.into(),
            queue: self.reader_queue_limit.into(),
            statement: Duration::from_secs(self.reader_statement_timeout),
        }
    }
}

/// Normalizes to a leading `/` and no trailing one; an empty prefix stays empty.
fn path_prefix(text: &str) -> Result<String, String> {
    let name = text.trim_matches('/');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    if name.is_empty() {
        Ok(String::new())
    } else if name.bytes().all(plain) {
        Ok(format!("/{name}"))
    } else {
        Err("give a path of letters, digits and `-._~/`".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_prefix_is_a_path() {
        for (text, prefix) in [("", ""), ("/", ""), ("/a/", "/a"), ("a/b-c", "/a/b-c")] {
            assert_eq!(path_prefix(text).as_deref(), Ok(prefix));
        }
        assert!(path_prefix("/a b").is_err());
        assert!(path_prefix("/{x}").is_err());
    }
}
