//! The connection itself: every address, TLS, the password, and whether connections are sessions.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, timeout_at};
use x509_cert::der::DateTime;

use super::Options;
use super::report::{Outcome, Report, State};
use crate::error::chain;
use crate::pg::{PasswordOrigin, Place, SessionMode, Survey, TlsMode, detect_mode};

const CONNECTION: &str = "connection";
const TLS: &str = "tls";
const PASSWORD: &str = "password";
const SESSIONS: &str = "sessions";

/// The checks of this file.
pub(super) const NAMES: [&str; 4] = [CONNECTION, TLS, PASSWORD, SESSIONS];

/// A certificate that expires within this time is reported.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

const VERIFY: &str = "set sslmode=verify-full, and sslrootcert to the certificate of the authority";

/// Tries every address. An error, with the reason, if there is no server at any of them.
pub(super) async fn survey(
    options: &Options,
    deadline: Instant,
    report: &mut Report,
) -> Result<(), String> {
    let surveyed = timeout_at(deadline, options.connector.survey(options.wait)).await;
    let survey = match surveyed {
        Ok(Ok(survey)) => survey,
        Ok(Err(error)) => {
            let advice = "correct the parameters of the connection, or the file that they name";
            report.add(CONNECTION, Outcome::problem(chain(&error), advice));
            return Err("the connection parameters cannot be used".to_owned());
        }
        Err(_) => {
            let advice = "check the network, or allow more by --timeout";
            let found = "the addresses could not be tried within --timeout";
            report.add(CONNECTION, Outcome::problem(found, advice));
            return Err(found.to_owned());
        }
    };
    for place in &survey.places {
        report.add(CONNECTION, of_place(place, &survey));
    }
    for outcome in tls(&survey) {
        report.add(TLS, outcome);
    }
    report.add(PASSWORD, password(&survey));
    if survey.places.iter().any(|place| place.outcome.is_ok()) {
        Ok(())
    } else {
        Err("there is no connection".to_owned())
    }
}

fn of_place(place: &Place, survey: &Survey) -> Outcome {
    let (name, elapsed) = (&place.name, place.elapsed.as_millis());
    match &place.outcome {
        Ok(reached) if reached.in_recovery => {
            Outcome::ok(format!("{name}: a standby, connected in {elapsed} ms"))
        }
        Ok(_) => Outcome::ok(format!("{name}: connected in {elapsed} ms")),
        Err(reason) => {
            // One server that accepts writes is enough for the daemon.
            let another = survey.places.iter().any(|other| {
                other
                    .outcome
                    .as_ref()
                    .is_ok_and(|reached| !reached.in_recovery)
            });
            let state = if another {
                State::Warning
            } else {
                State::Problem
            };
            let advice = if place.is_login_refused {
                "check the role, its password and the server's pg_hba.conf"
            } else {
                "check that the server runs, and that the host, the port and the network are right"
            };
            Outcome::bad(state, format!("{name}: {reason}"), advice)
        }
    }
}

fn tls(survey: &Survey) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for place in &survey.places {
        if let Ok(reached) = &place.outcome {
            outcomes.push(tls_at(place, reached.tls, survey));
        }
    }
    match &survey.client_certificate {
        Ok(None) => {}
        Ok(Some((path, expires_secs))) => {
            let found = format!("the client certificate {path}");
            outcomes.push(of_certificate(found, *expires_secs, State::Problem));
        }
        Err(reason) => outcomes.push(Outcome::problem(reason, "correct sslcert and sslkey")),
    }
    if outcomes.is_empty() {
        outcomes.push(Outcome::not_done("there is no connection"));
    }
    outcomes
}

fn tls_at(place: &Place, peer: Option<crate::pg::Peer>, survey: &Survey) -> Outcome {
    let (name, mode) = (&place.name, survey.tls_mode.name());
    let Some(peer) = peer else {
        let found = format!("{name}: no TLS (sslmode={mode})");
        return if place.is_local {
            Outcome::ok(format!("{found}; the server is on this machine"))
        } else {
            Outcome::warning(
                format!("{found}, so others on the network can read and change what is sent"),
                VERIFY,
            )
        };
    };
    let version = peer.version;
    let verified = match (survey.is_verified, survey.tls_mode) {
        (false, _) => "the certificate is not verified",
        (true, TlsMode::VerifyFull) => "the certificate and its name are verified",
        (true, _) => "the certificate is verified, its name is not",
    };
    let found = format!("{name}: {version}, sslmode={mode}, {verified}; the certificate");
    let outcome = of_certificate(found, peer.expires_secs, State::Warning);
    if outcome.state == State::Ok && !survey.is_verified && !place.is_local {
        return Outcome::warning(outcome.found, VERIFY);
    }
    outcome
}

/// `expired` is the state of a certificate that has expired.
fn of_certificate(found: String, expires_secs: Option<u64>, expired: State) -> Outcome {
    let Some(expires) = expires_secs.map(Duration::from_secs) else {
        return Outcome::ok(found + " cannot be parsed");
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default();
    let day = day(expires);
    if expires <= now {
        Outcome::bad(expired, format!("{found} expired on {day}"), "renew it")
    } else if expires - now < EXPIRES_SOON {
        Outcome::warning(format!("{found} expires on {day}"), "renew it")
    } else {
        Outcome::ok(format!("{found} expires on {day}"))
    }
}

fn day(since_epoch: Duration) -> String {
    let text = DateTime::from_unix_duration(since_epoch).map(|date| date.to_string());
    let text = text.unwrap_or_default();
    text.split('T').next().unwrap_or_default().to_owned()
}

fn password(survey: &Survey) -> Outcome {
    match &survey.password {
        Ok(PasswordOrigin::File(path)) => {
            Outcome::ok(format!("read from {} for each connection", path.display()))
        }
        Ok(PasswordOrigin::Parameters) => Outcome::ok("in the connection parameters"),
        Ok(PasswordOrigin::Passfile(path, None)) => {
            Outcome::ok(format!("the password file {} is used", path.display()))
        }
        Ok(PasswordOrigin::Passfile(path, Some(reason))) => Outcome::warning(
            format!("{}: {reason}", path.display()),
            format!("run `chmod 600 {}`", path.display()),
        ),
        Ok(PasswordOrigin::Nowhere) => Outcome::ok("none is configured"),
        Err(reason) => Outcome::problem(reason, "make the file readable for this user"),
    }
}

/// Whether connections are sessions, and notifications arrive: by the test that the daemon makes.
pub(super) async fn mode(
    options: &Options,
    deadline: Instant,
    report: &mut Report,
) -> Option<SessionMode> {
    let until = deadline.min(Instant::now() + 2 * options.wait + super::CHECK_LIMIT);
    let (mode, outcome) = match timeout_at(until, detect_mode(&options.connector)).await {
        Ok(Ok(SessionMode::Transaction)) => (
            Some(SessionMode::Transaction),
            Outcome::warning(
                "connected through a transaction pooler: LISTEN does not work, the daemon polls every \
                 100 ms, and every daemon works",
                "connect the daemon to PostgreSQL itself, or pool sessions, if that is not intended",
            ),
        ),
        Ok(Ok(mode)) => (
            Some(mode),
            Outcome::ok("connections are sessions, and a notification arrived"),
        ),
        Ok(Err(error)) => (None, Outcome::not_done(&chain(&error))),
        Err(_) => (None, Outcome::not_done("the server does not answer")),
    };
    report.add(SESSIONS, outcome);
    mode
}
