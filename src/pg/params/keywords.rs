//! The keywords of libpq, with their environment variables.
//!
//! Owns the decision which keywords are supported. [`check_name`] is called for each parameter, from
//! wherever it comes: the connection string, a service file or the environment.

use super::error::ParamsError;

/// The supported keywords of libpq, with their environment variables.
pub(super) const SUPPORTED: [(&str, Option<&str>); 36] = [
    ("host", Some("PGHOST")),
    ("hostaddr", Some("PGHOSTADDR")),
    ("port", Some("PGPORT")),
    ("dbname", Some("PGDATABASE")),
    ("user", Some("PGUSER")),
    ("password", Some("PGPASSWORD")),
    ("passfile", Some("PGPASSFILE")),
    ("service", Some("PGSERVICE")),
    ("servicefile", Some("PGSERVICEFILE")),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    ("options", Some("PGOPTIONS")),
    ("application_name", Some("PGAPPNAME")),
    ("fallback_application_name", None),
    ("client_encoding", Some("PGCLIENTENCODING")),
    ("keepalives", None),
    ("keepalives_idle", None),
    ("keepalives_interval", None),
    ("keepalives_count", None),
    ("tcp_user_timeout", None),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    ("load_balance_hosts", Some("PGLOADBALANCEHOSTS")),
    ("channel_binding", Some("PGCHANNELBINDING")),
    ("gssencmode", Some("PGGSSENCMODE")),
    ("sslmode", Some("PGSSLMODE")),
    ("sslnegotiation", Some("PGSSLNEGOTIATION")),
    ("sslcert", Some("PGSSLCERT")),
    ("sslkey", Some("PGSSLKEY")),
    ("sslcertmode", Some("PGSSLCERTMODE")),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("sslcrl", Some("PGSSLCRL")),
    ("sslsni", Some("PGSSLSNI")),
    ("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION")),
    ("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION")),
    ("sslcompression", Some("PGSSLCOMPRESSION")),
    ("min_protocol_version", Some("PGMINPROTOCOLVERSION")),
    ("max_protocol_version", Some("PGMAXPROTOCOLVERSION")),
];

/// The other keywords of libpq.
pub(super) const UNSUPPORTED: [(&str, Option<&str>); 16] = [
    ("sslpassword", None),
    ("sslcrldir", Some("PGSSLCRLDIR")),
    ("sslkeylogfile", None),
    ("requirepeer", Some("PGREQUIREPEER")),
    ("require_auth", Some("PGREQUIREAUTH")),
    ("krbsrvname", Some("PGKRBSRVNAME")),
    ("gsslib", Some("PGGSSLIB")),
    ("gssdelegation", Some("PGGSSDELEGATION")),
    ("replication", None),
    ("scram_client_key", None),
    ("scram_server_key", None),
    ("oauth_issuer", None),
    ("oauth_client_id", None),
    ("oauth_client_secret", None),
    ("oauth_scope", None),
    ("oauth_ca_file", None),
];

/// Checks that a parameter is supported.
///
/// # Errors
/// If it is unknown, or if its value would have no effect.
pub(super) fn check_name(name: &str, value: &str) -> Result<(), ParamsError> {
    let is = |known: &&(&str, Option<&str>)| known.0 == name;
    if SUPPORTED.iter().any(|known| is(&known)) {
        return Ok(());
    }
    if UNSUPPORTED.iter().any(|known| is(&known)) {
        let without_effect =
            value.is_empty() || (["replication", "gssdelegation"].contains(&name) && is_off(value));
        if without_effect {
            return Ok(());
        }
        return Err(ParamsError::Unsupported(name.to_owned()));
    }
    // Anything else than a name may be a part of a password.
    let is_name =
        (1..=40).contains(&name.len()) && name.bytes().all(|c| c == b'_' || c.is_ascii_lowercase());
    Err(ParamsError::Unknown(if is_name {
        format!("\"{name}\"")
    } else {
        "(its name is not shown because it is not a name)".to_owned()
    }))
}

/// Values that state the only behaviour that exists are accepted.
fn is_off(value: &str) -> bool {
    ["", "0", "false", "off", "no"].contains(&value)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{problem, source};
    use super::*;

    #[test]
    fn every_keyword_of_libpq_is_supported_or_refused_by_its_name() {
        for (name, _) in UNSUPPORTED {
            let text = problem(&format!("host=h {name}=secret"));
            assert_eq!(
                text,
                format!("connection parameter \"{name}\" is not supported")
            );
        }
        for (name, _) in SUPPORTED {
            assert!(!problem_or_empty(name).contains("not supported"), "{name}");
        }
        assert_eq!(
            problem("host=h nosuch=1"),
            "unknown connection parameter \"nosuch\""
        );
        assert_eq!(
            problem("postgresql://h/d?nosuch=1"),
            "unknown connection parameter \"nosuch\""
        );
        let text = problem("password=a b?c=secret");
        assert!(!text.contains("b?c") && !text.contains("secret"), "{text}");
    }

    fn problem_or_empty(name: &str) -> String {
        match source(&format!("{name}=1")).resolve(&|_| None) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }
}
