//! Converts the text of the parameters into [`Params`], with libpq's units and defaults.
//!
//! A value that this client would ignore is refused by the name of its parameter.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use tokio_postgres::config::ChannelBinding;

use super::error::{ParamsError, invalid};
use super::resolved::{Keepalives, Limit, Params, TargetSession};
use super::source::Env;
use super::values::Values;

/// Where no user is given.
const DEFAULT_USER: &str = "postgres";

const APPLICATION_NAME: &str = "status-indexer";

impl Values {
    /// The parameters of one connection.
    pub(super) fn params(&self, env: Env<'_>) -> Result<Params, ParamsError> {
        self.check_constants()?;
        let targets = self.targets()?;
        let tls = self.tls(&targets, env)?;
        Ok(Params {
            targets,
            user: self
                .owned("user")
                .unwrap_or_else(|| DEFAULT_USER.to_owned()),
            dbname: self.owned("dbname"),
            password: self.get("password").map(SecretString::from),
            passfile: self
                .get("passfile")
                .map(PathBuf::from)
                .or_else(|| Some(Path::new(&env("HOME")?).join(".pgpass"))),
            options: self.owned("options"),
            application_name: self
                .owned("application_name")
                .or_else(|| self.owned("fallback_application_name"))
                .unwrap_or_else(|| APPLICATION_NAME.to_owned()),
            connect_timeout: self.connect_timeout()?,
            keepalives: self.keepalives()?,
            tcp_user_timeout: self.duration(
                "tcp_user_timeout",
                Duration::from_millis,
                Duration::from_secs(10),
            )?,
            target_session: self.target_session()?,
            shuffle: self.choice(
                "load_balance_hosts",
                false,
                &[("disable", false), ("random", true)],
            )?,
            channel_binding: self.channel_binding()?,
            tls,
        })
    }

    fn connect_timeout(&self) -> Result<Option<Limit>, ParamsError> {
        Ok(self.integer("connect_timeout")?.map(|secs| match secs {
            ..=0 => Limit::Unlimited,
            // libpq's minimum.
            1 => Limit::After(Duration::from_secs(2)),
            secs => Limit::After(Duration::from_secs(secs.unsigned_abs().into())),
        }))
    }

    fn keepalives(&self) -> Result<Keepalives, ParamsError> {
        let count = self.integer("keepalives_count")?.unwrap_or(3);
        Ok(Keepalives {
            enabled: self.integer("keepalives")?.unwrap_or(1) != 0,
            idle: self.duration(
                "keepalives_idle",
                Duration::from_secs,
                Duration::from_secs(10),
            )?,
            interval: self.duration(
                "keepalives_interval",
                Duration::from_secs,
                Duration::from_secs(3),
            )?,
            count: u32::try_from(count).ok().filter(|count| *count > 0),
        })
    }

    fn target_session(&self) -> Result<TargetSession, ParamsError> {
        self.choice(
            "target_session_attrs",
            TargetSession::Any,
            &[
                ("any", TargetSession::Any),
                ("read-write", TargetSession::ReadWrite),
                ("read-only", TargetSession::ReadOnly),
                ("primary", TargetSession::Primary),
                ("standby", TargetSession::Standby),
                ("prefer-standby", TargetSession::PreferStandby),
            ],
        )
    }

    fn channel_binding(&self) -> Result<ChannelBinding, ParamsError> {
        self.choice(
            "channel_binding",
            ChannelBinding::Prefer,
            &[
                ("disable", ChannelBinding::Disable),
                ("prefer", ChannelBinding::Prefer),
                ("require", ChannelBinding::Require),
            ],
        )
    }

    /// Parameters that are supported with some of their values: those that this client has in effect.
    fn check_constants(&self) -> Result<(), ParamsError> {
        let in_effect: [(&str, &[&str]); 5] = [
            ("gssencmode", &["disable", "prefer"]),
            ("client_encoding", &["auto", "utf8", "utf-8", "unicode"]),
            ("sslcompression", &["0"]),
            ("min_protocol_version", &["3.0"]),
            ("max_protocol_version", &["3.0", "latest"]),
        ];
        for (name, values) in in_effect {
            let Some(text) = self.get(name) else { continue };
            let text = text.to_ascii_lowercase();
            if !values.contains(&text.as_str()) {
                return Err(invalid(
                    name,
                    &format!("is supported only as: {}", values.join(", ")),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{LIMIT, params, problem};
    use super::*;

    #[test]
    fn values_that_would_be_ignored_are_refused_by_the_name_of_their_parameter() {
        for (pair, name) in [
            ("gssencmode=require", "gssencmode"),
            ("client_encoding=latin1", "client_encoding"),
            ("sslcompression=1", "sslcompression"),
            ("sslcertmode=require", "sslcertmode"),
            ("min_protocol_version=3.2", "min_protocol_version"),
            (
                "ssl_max_protocol_version=TLSv1.1",
                "ssl_max_protocol_version",
            ),
            (
                "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
                "ssl_min",
            ),
            ("sslmode=secretly", "sslmode"),
            ("target_session_attrs=secretly", "target_session_attrs"),
            ("load_balance_hosts=secretly", "load_balance_hosts"),
            ("channel_binding=secretly", "channel_binding"),
            ("connect_timeout=secretly", "connect_timeout"),
            ("keepalives_count=secretly", "keepalives_count"),
            ("port=secretly", "port"),
            ("port=0", "port"),
            ("port=65536", "port"),
            ("port=1,2", "port"),
            ("host=a,b hostaddr=::1", "hostaddr"),
            ("hostaddr=secretly", "hostaddr"),
            ("host=@secretly", "host"),
            ("sslrootcert=system sslmode=verify-ca", "sslrootcert=system"),
            ("sslnegotiation=direct", "sslnegotiation=direct"),
            ("hostaddr=::1 sslmode=verify-full", "host"),
        ] {
            let text = problem(pair);
            assert!(text.contains(name), "{pair}: {text}");
            assert!(!text.contains("secret"), "{text}");
        }
        for pair in [
            "gssencmode=prefer",
            "client_encoding=UTF8",
            "client_encoding=auto",
            "sslcompression=0",
            "sslcrldir=",
            "replication=off",
            "max_protocol_version=latest",
            "ssl_min_protocol_version=TLSv1",
        ] {
            params(pair);
        }
    }

    #[test]
    fn times_are_in_libpqs_units_and_zero_means_the_systems_default() {
        let defaults = params("");
        assert_eq!(defaults.tcp_user_timeout, Some(Duration::from_secs(10)));
        assert_eq!(defaults.keepalives.idle, Some(Duration::from_secs(10)));
        assert_eq!(defaults.connect_timeout, Some(Limit::After(LIMIT)));
        let given = params(
            "tcp_user_timeout=8000 keepalives_idle=20 keepalives_interval=0 keepalives_count=5 \
             connect_timeout=3",
        );
        assert_eq!(given.tcp_user_timeout, Some(Duration::from_secs(8)));
        assert_eq!(
            given.keepalives,
            Keepalives {
                enabled: true,
                idle: Some(Duration::from_secs(20)),
                interval: None,
                count: Some(5),
            }
        );
        assert_eq!(
            given.connect_timeout,
            Some(Limit::After(Duration::from_secs(3)))
        );
        assert_eq!(params("tcp_user_timeout=0").tcp_user_timeout, None);
        assert!(!params("keepalives=0").keepalives.enabled);
        assert_eq!(
            params("connect_timeout=0").connect_timeout,
            Some(Limit::Unlimited)
        );
        assert_eq!(
            params("connect_timeout=-1").connect_timeout,
            Some(Limit::Unlimited)
        );
    }
}
