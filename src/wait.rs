//! Waits for a database that is starting, absent or refusing, so that services may start in any
//! order.
//!
//! Retries while the cause can disappear by itself, and fails at once if an operator must remove
//! it. Used by the commands; the daemon, which waits for everything, has its own loop in
//! `daemon::startup`.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::error::{Error, Remedy, chain, remedy_of};
use crate::pg::Connector;

/// Repeats an attempt until it succeeds; none if stopped before. `limit` is the maximum time of all
/// attempts.
///
/// # Errors
/// If an operator must remove the cause, or when the limit is reached.
pub(crate) async fn until_available<T, F>(
    mut attempt: impl FnMut() -> F,
    limit: Duration,
    stop: &CancellationToken,
) -> anyhow::Result<Option<T>>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let begin = Instant::now();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut reason = String::new();
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(Some(done)),
            Err(error) => error,
        };
        if stop.is_cancelled() {
            return Ok(None);
        }
        let remedy = remedy_for(&error);
        if !matches!(remedy, Remedy::Retry | Remedy::LogIn) {
            return Err(match remedy.hint() {
                Some(hint) => error.context(hint),
                None => error,
            });
        }
        let left = limit.saturating_sub(begin.elapsed());
        if left == Duration::ZERO {
            return Err(error.context(gave_up(remedy, begin.elapsed())));
        }
        let text = chain(error.as_ref());
        if text != reason {
            tracing::warn!(error = text, "waiting for the database");
            reason = text;
        }
        let wait = backoff.next_wait().min(left);
        if stop.run_until_cancelled(sleep(wait)).await.is_none() {
            return Ok(None);
        }
    }
}

/// Waits until a connection to the primary can be opened; false if stopped before. Sets nothing in the
/// session, which may be a pooler's.
///
/// # Errors
/// As [`until_available`].
pub(crate) async fn for_connection(
    connector: &Connector,
    limit: Duration,
    stop: &CancellationToken,
) -> anyhow::Result<bool> {
    let attempt = || async {
        let connected = stop.run_until_cancelled(connector.connect_bare()).await;
        match connected {
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(error.into()),
            None => Err(Error::Stopping.into()),
        }
    };
    let connected = until_available(attempt, limit, stop).await?;
    Ok(connected.is_some())
}

fn gave_up(remedy: Remedy, waited: Duration) -> String {
    let advice = remedy.hint().unwrap_or(
        "check that it runs, and that DATABASE_URL or MF_METADATA_DB_HOST and MF_METADATA_DB_PORT \
         name it; wait longer with --wait",
    );
    format!(
        "the database was not available for {} s: {advice}",
        waited.as_secs()
    )
}

/// What to do about an error of an attempt.
pub(crate) fn remedy_for(error: &anyhow::Error) -> Remedy {
    error
        .chain()
        .find_map(|cause| {
            if let Some(error) = cause.downcast_ref::<Error>() {
                return Some(error.remedy());
            }
            let error = cause.downcast_ref::<tokio_postgres::Error>()?;
            match error.code() {
                Some(code) => Some(remedy_of(code)),
                None => error.is_closed().then_some(Remedy::Retry),
            }
        })
        .unwrap_or(Remedy::Refused)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn refused() -> anyhow::Error {
        Error::Connect("connection refused".into()).into()
    }

    #[tokio::test]
    async fn an_unavailable_database_is_waited_for_until_the_limit() {
        let stop = CancellationToken::new();
        let attempts = Cell::new(0);
        let attempt = || async {
            attempts.set(attempts.get() + 1);
            if attempts.get() == 3 {
                Ok(7)
            } else {
                Err(refused())
            }
        };
        let done = until_available(attempt, LONG, &stop).await;
        assert_eq!(done.expect("the third attempt succeeds"), Some(7));

        let attempt = || async { Err::<(), _>(refused()) };
        let failed = until_available(attempt, Duration::ZERO, &stop).await;
        let text = chain(failed.expect_err("it is never available").as_ref());
        assert!(text.contains("not available for 0 s"), "{text}");
        assert!(text.contains("--wait"), "{text}");
    }

    #[tokio::test]
    async fn what_an_operator_must_change_ends_the_wait_at_once() {
        let stop = CancellationToken::new();
        let attempt = || async { Err::<(), _>(anyhow::anyhow!("the tables are not found")) };
        let failed = until_available(attempt, LONG, &stop).await;
        let error = failed.expect_err("it fails");
        assert_eq!(error.to_string(), "the tables are not found");
    }

    #[tokio::test]
    async fn a_stop_ends_the_wait() {
        let stop = CancellationToken::new();
        stop.cancel();
        let waited = until_available(|| async { Err::<(), _>(refused()) }, LONG, &stop).await;
        assert_eq!(waited.expect("a stop is not a failure"), None);
    }
}
