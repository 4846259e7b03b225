//! The parameters after all defaults are applied: what `connect` needs for one connection.
//!
//! Contains no rules; `convert` makes a [`Params`] from the text of the parameters.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use tokio_postgres::config::ChannelBinding;

use super::target::Target;
use crate::pg::tls::TlsParams;

/// Which server may be connected to, as `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TargetSession {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// A limit on one attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    Unlimited,
    After(Duration),
}

/// `TCP_KEEPIDLE` and its companions; none for the system's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalives {
    pub(crate) enabled: bool,
    pub(crate) idle: Option<Duration>,
    pub(crate) interval: Option<Duration>,
    pub(crate) count: Option<u32>,
}

/// All parameters of one connection.
#[derive(Debug, Clone)]
pub(crate) struct Params {
    pub(crate) targets: Vec<Target>,
    pub(crate) user: String,
    pub(crate) dbname: Option<String>,
    pub(crate) password: Option<SecretString>,
    pub(crate) passfile: Option<PathBuf>,
    pub(crate) options: Option<String>,
    pub(crate) application_name: String,
    pub(crate) connect_timeout: Option<Limit>,
    pub(crate) keepalives: Keepalives,
    pub(crate) tcp_user_timeout: Option<Duration>,
    pub(crate) target_session: TargetSession,
    pub(crate) shuffle: bool,
    pub(crate) channel_binding: ChannelBinding,
    pub(crate) tls: TlsParams,
}
