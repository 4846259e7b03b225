//! Leadership: which of several daemons does the work.
//!
//! The listener takes part in the election and owns the [`Leadership`]. The stages wait for a term
//! with their [`LeaderWatch`]. A term is a cancellation token: it is cancelled when this daemon
//! stops being the leader or shuts down, so that all work of the term ends with it. Leadership only
//! saves work: two daemons that work at the same time still write correct statuses.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The time during which this daemon leads.
pub(crate) type Term = CancellationToken;

/// Held by the listener: begins and ends terms.
#[derive(Debug)]
pub(crate) struct Leadership {
    term: watch::Sender<Option<Term>>,
    stop: CancellationToken,
}

/// Held by the stages: waits for terms.
#[derive(Debug, Clone)]
pub(crate) struct LeaderWatch(watch::Receiver<Option<Term>>);

impl Leadership {
    /// No term yet; every term ends with `stop`.
    pub(crate) fn new(stop: CancellationToken) -> (Self, LeaderWatch) {
        let (term, watch) = watch::channel(None);
        (Self { term, stop }, LeaderWatch(watch))
    }

    /// Whether a term has begun and not ended.
    pub(crate) fn is_leading(&self) -> bool {
        self.term.borrow().is_some()
    }

    /// Begins a term.
    pub(crate) fn begin(&self) {
        self.term.send_replace(Some(self.stop.child_token()));
    }

    /// Ends the term; returns whether there was one.
    pub(crate) fn resign(&self) -> bool {
        let ended = self.term.send_replace(None);
        if let Some(term) = &ended {
            term.cancel();
        }
        ended.is_some()
    }
}

impl LeaderWatch {
    /// Waits until this daemon leads; returns the term.
    pub(crate) async fn term(&mut self) -> Term {
        let begun = self.0.wait_for(Option::is_some).await;
        let term = begun.ok().and_then(|term| term.clone());
        match term {
            Some(term) => term,
            // The listener is gone: the daemon is stopping, and so is the caller.
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_term_ends_with_the_leadership_and_with_the_daemon() {
        let stop = CancellationToken::new();
        let (leadership, mut watch) = Leadership::new(stop.clone());
        assert!(!leadership.is_leading());
        leadership.begin();
        let first = watch.term().await;
        assert!(leadership.is_leading() && !first.is_cancelled());
        assert!(leadership.resign());
        assert!(first.is_cancelled() && !leadership.resign());
        leadership.begin();
        let second = watch.term().await;
        assert!(!second.is_cancelled());
        stop.cancel();
        assert!(second.is_cancelled());
    }
}
