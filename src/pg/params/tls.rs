//! The parameters of TLS, with libpq's defaults and its default files under `~/.postgresql`.
//!
//! Refuses combinations that would not verify what they seem to verify.

use std::path::{Path, PathBuf};

use super::error::{ParamsError, invalid};
use super::source::Env;
use super::target::Target;
use super::values::{Values, choose};
use crate::pg::tls::{TlsMode, TlsParams};

impl Values {
    /// The parameters of TLS to these hosts.
    pub(super) fn tls(&self, targets: &[Target], env: Env<'_>) -> Result<TlsParams, ParamsError> {
        let mode = self.tls_mode()?;
        let direct = self.is_direct(mode)?;
        if mode == TlsMode::VerifyFull && targets.iter().any(|target| target.host.is_none()) {
            return Err(ParamsError::Contradiction(
                "sslmode=verify-full requires \"host\" beside \"hostaddr\": the certificate is \
                 verified for that name",
            ));
        }
        let home = env("HOME").map(|home| Path::new(&home).join(".postgresql"));
        let path = |name: &str, default: &str| {
            self.get(name).map(PathBuf::from).or_else(|| {
                let path = home.as_ref()?.join(default);
                path.exists().then_some(path)
            })
        };
        let sends_certificate =
            self.choice("sslcertmode", true, &[("disable", false), ("allow", true)])?;
        let cert_path = path("sslcert", "postgresql.crt").filter(|_| sends_certificate);
        let (tls12, tls13) = self.tls_versions()?;
        Ok(TlsParams {
            mode,
            direct,
            key_path: match cert_path {
                Some(_) => path("sslkey", "postgresql.key"),
                None if sends_certificate => self.get("sslkey").map(PathBuf::from),
                None => None,
            },
            cert_path,
            root_cert_path: path("sslrootcert", "root.crt").filter(|_| !self.has_system_roots()),
            crl_path: path("sslcrl", "root.crl"),
            sni: self.choice("sslsni", true, &[("0", false), ("1", true)])?,
            tls12,
            tls13,
        })
    }

    fn has_system_roots(&self) -> bool {
        self.get("sslrootcert") == Some("system")
    }

    fn tls_mode(&self) -> Result<TlsMode, ParamsError> {
        let modes = [
            ("disable", TlsMode::Disable),
            ("allow", TlsMode::Allow),
            ("prefer", TlsMode::Prefer),
            ("require", TlsMode::Require),
            ("verify-ca", TlsMode::VerifyCa),
            ("verify-full", TlsMode::VerifyFull),
        ];
        let default = if self.has_system_roots() {
            TlsMode::VerifyFull
        } else {
            TlsMode::Prefer
        };
        let mode = self.choice("sslmode", default, &modes)?;
        if self.has_system_roots() && mode != TlsMode::VerifyFull {
            return Err(ParamsError::Contradiction(
                "sslrootcert=system requires sslmode=verify-full: any other mode would accept a \
                 certificate of any host",
            ));
        }
        Ok(mode)
    }

    fn is_direct(&self, mode: TlsMode) -> Result<bool, ParamsError> {
        let direct = self.choice(
            "sslnegotiation",
            false,
            &[("postgres", false), ("direct", true)],
        )?;
        if direct && matches!(mode, TlsMode::Disable | TlsMode::Allow | TlsMode::Prefer) {
            return Err(ParamsError::Contradiction(
                "sslnegotiation=direct requires sslmode=require, verify-ca or verify-full",
            ));
        }
        Ok(direct)
    }

    /// Whether TLS 1.2 and TLS 1.3 may be used.
    fn tls_versions(&self) -> Result<(bool, bool), ParamsError> {
        let (min, max) = (
            self.tls_version("ssl_min_protocol_version", 2)?,
            self.tls_version("ssl_max_protocol_version", 3)?,
        );
        if max < 2 {
            return Err(invalid(
                "ssl_max_protocol_version",
                "must be TLSv1.2 or TLSv1.3: earlier versions are not supported",
            ));
        }
        if min > max {
            return Err(ParamsError::Contradiction(
                "ssl_min_protocol_version is greater than ssl_max_protocol_version",
            ));
        }
        Ok((min <= 2, max >= 3))
    }

    /// The minor number of a version of TLS, written in any case.
    fn tls_version(&self, name: &'static str, default: u8) -> Result<u8, ParamsError> {
        let versions = [("tlsv1", 0), ("tlsv1.1", 1), ("tlsv1.2", 2), ("tlsv1.3", 3)];
        let lower = self.get(name).map(str::to_ascii_lowercase);
        choose(name, lower.as_deref(), default, &versions)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::params;
    use super::*;

    #[test]
    fn tls_parameters_have_libpqs_defaults() {
        let tls = params("").tls;
        assert_eq!(tls.mode, TlsMode::Prefer);
        assert!(tls.sni && tls.tls12 && tls.tls13 && !tls.direct);
        assert_eq!(params("sslrootcert=system").tls.mode, TlsMode::VerifyFull);
        assert_eq!(params("requiressl=1").tls.mode, TlsMode::Require);
        assert!(!params("ssl_min_protocol_version=TLSv1.3").tls.tls12);
        assert!(!params("ssl_max_protocol_version=tlsv1.2").tls.tls13);
        let off = params("sslcert=c sslkey=k sslcertmode=disable").tls;
        assert_eq!((off.cert_path, off.key_path), (None, None));
    }
}
