//! The parameters in the driver's terms, for one address.

use std::net::IpAddr;

use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::Config;
use tokio_postgres::config::{SslMode, SslNegotiation};

use crate::pg::params::{Keepalives, Params, Target};
use crate::pg::tls::TlsMode;

/// The driver's parameters for one address.
pub(super) fn config(
    params: &Params,
    target: &Target,
    address: Option<IpAddr>,
    password: Option<&SecretString>,
    ssl_mode: SslMode,
) -> Config {
    let mut config = Config::new();
    config
        .host(target.name())
        .port(target.port)
        .user(&params.user)
        .application_name(&params.application_name)
        .channel_binding(params.channel_binding)
        .ssl_mode(ssl_mode);
    if let Some(address) = address {
        config.hostaddr(address);
    }
    if let Some(dbname) = &params.dbname {
        config.dbname(dbname);
    }
    if let Some(password) = password {
        config.password(password.expose_secret());
    }
    if let Some(options) = &params.options {
        config.options(options);
    }
    if params.tls.direct {
        config.ssl_negotiation(SslNegotiation::Direct);
    }
    set_keepalives(&mut config, &params.keepalives);
    if let Some(limit) = params.tcp_user_timeout {
        config.tcp_user_timeout(limit);
    }
    config
}

fn set_keepalives(config: &mut Config, keepalives: &Keepalives) {
    config.keepalives(keepalives.enabled);
    if let Some(idle) = keepalives.idle {
        config.keepalives_idle(idle);
    }
    if let Some(interval) = keepalives.interval {
        config.keepalives_interval(interval);
    }
    if let Some(count) = keepalives.count {
        config.keepalives_retries(count);
    }
}

/// The driver's modes to try in turn: it knows neither libpq's `allow`, nor the second try of
/// `prefer`. There is no TLS over a Unix socket.
pub(super) fn modes(target: &Target, mode: TlsMode) -> &'static [SslMode] {
    match mode {
        _ if target.is_unix() => &[SslMode::Disable],
        TlsMode::Disable => &[SslMode::Disable],
        TlsMode::Allow => &[SslMode::Disable, SslMode::Require],
        TlsMode::Prefer => &[SslMode::Prefer, SslMode::Disable],
        TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => &[SslMode::Require],
    }
}
