//! Records refused logins: how long every attempt has been refused.
//!
//! A password or a certificate that changed under a running process may be readable only by a new
//! process, so the daemon exits after a time of nothing but refusals. Any other outcome of an
//! attempt to connect resets the time.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::connect::ConnectError;
use crate::error::chain;

/// Refusals further apart than this are not one series, because there were no attempts in between.
const GAP: Duration = Duration::from_secs(120);

/// See the module.
#[derive(Debug)]
pub struct Logins(watch::Sender<Option<Refusals>>);

#[derive(Debug, Clone)]
struct Refusals {
    first: Instant,
    last: Instant,
    reason: String,
}

impl Default for Logins {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Logins {
    /// Records the outcome of an attempt to connect.
    pub(crate) fn record(&self, error: Option<&ConnectError>) {
        let refused = error.filter(|error| error.is_login_refused());
        self.note(Instant::now(), refused.map(|error| chain(error)));
    }

    fn note(&self, now: Instant, refusal: Option<String>) {
        self.0.send_modify(|refusals| {
            let Some(reason) = refusal else {
                *refusals = None;
                return;
            };
            let first = match refusals {
                Some(series) if now - series.last <= GAP => series.first,
                _ => now,
            };
            *refusals = Some(Refusals {
                first,
                last: now,
                reason,
            });
        });
    }

    /// Resolves, with the last reason, when only refusals have been recorded for `limit`.
    pub async fn refused_for(&self, limit: Duration) -> String {
        let mut refusals = self.0.subscribe();
        let is_over = |refusals: &Option<Refusals>| {
            refusals
                .as_ref()
                .is_some_and(|series| series.last - series.first >= limit)
        };
        let over = refusals.wait_for(is_over).await.ok();
        let reason = over.and_then(|series| series.as_ref().map(|series| series.reason.clone()));
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(300);

    /// Refuses every ten seconds; returns the time of the next attempt.
    fn refuse_for(logins: &Logins, mut now: Instant, secs: u64) -> Instant {
        for _ in 0..secs / 10 {
            logins.note(now, Some("wrong password".to_owned()));
            now += Duration::from_secs(10);
        }
        now
    }

    #[test]
    fn only_an_unbroken_series_of_refusals_ends_the_wait() {
        let logins = Logins::default();
        let now = refuse_for(&logins, Instant::now(), 300);
        logins.note(now, None);
        let now = refuse_for(&logins, now, 300);
        assert!(logins.refused_for(LIMIT).now_or_never().is_none());
        let now = refuse_for(&logins, now + GAP, 300);
        assert!(logins.refused_for(LIMIT).now_or_never().is_none());
        logins.note(now, Some("unknown role".to_owned()));
        let reason = logins.refused_for(LIMIT).now_or_never();
        assert_eq!(reason.as_deref(), Some("unknown role"));
    }
}
