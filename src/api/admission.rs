//! Admission of reads: how many run at once, how many wait, and what happens to an abandoned one.
//!
//! Promises that requests do not pile up: each read needs a permit, a limited number of requests
//! wait for one, and the next is rejected. An abandoned request (its client disconnected, or its
//! answer did not arrive in time) has its statement cancelled, and its connection is never used
//! again, so that neither a late answer nor a late cancellation affects another request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error::ApiError;
use crate::pg::{Connector, PooledClient};

/// How long a request waits for a permit.
const PERMIT_WAIT: Duration = Duration::from_secs(5);

/// Limits on reads.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections, and therefore concurrent reads.
    pub pool_max: usize,
    /// Requests that wait for a connection.
    pub queue: usize,
    /// Execution time of a statement on the server.
    pub statement: Duration,
}

/// What happens to a request that finds the queue full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenFull {
    /// It is rejected.
    Reject,
    /// It waits nevertheless: its answer has begun, and its status code can no longer change.
    Wait,
}

/// The right to use one connection. Shared by a request and its [`Lease`]; free again when both
/// have dropped it.
pub(super) type Permit = Arc<OwnedSemaphorePermit>;

/// Hands out permits, one for each connection of the pool.
#[derive(Debug)]
pub(super) struct Admission {
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    queue: usize,
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(limits.pool_max)),
            waiting: AtomicUsize::new(0),
            queue: limits.queue,
        }
    }

    /// Takes a permit, or waits for one.
    pub(super) async fn permit(&self, when_full: WhenFull) -> Result<Permit, ApiError> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(Arc::new(permit));
        }
        let waiter = Waiter::new(&self.waiting);
        if when_full == WhenFull::Reject && waiter.ahead >= self.queue {
            return Err(ApiError::busy());
        }
        match timeout(PERMIT_WAIT, Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Arc::new(permit)),
            _ => Err(ApiError::busy()),
        }
    }

    /// Rejects all requests from now on.
    pub(super) fn close(&self) {
        self.permits.close();
    }
}

/// A request that waits for a permit. It is counted until it is dropped.
struct Waiter<'a> {
    waiting: &'a AtomicUsize,
    ahead: usize,
}

impl<'a> Waiter<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        let ahead = waiting.fetch_add(1, Ordering::Relaxed);
        Self { waiting, ahead }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that executes a statement. Dropping it cancels the statement.
pub(super) struct Lease {
    /// None once it has been released.
    client: Option<(PooledClient, Permit)>,
    connector: Connector,
}

impl Lease {
    pub(super) fn new(client: PooledClient, permit: Permit, connector: Connector) -> Self {
        Self {
            client: Some((client, permit)),
            connector,
        }
    }

    pub(super) fn client(&self) -> &PooledClient {
        let (client, _) = self
            .client
            .as_ref()
            .expect("only release, discard and drop take it");
        client
    }

    /// The answer is complete: returns the connection to the pool.
    pub(super) fn release(mut self) {
        self.client = None;
    }

    /// The answer is complete: closes the connection.
    pub(super) fn discard(mut self) {
        if let Some((client, _)) = self.client.take() {
            drop(PooledClient::take(client));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some((client, permit)) = self.client.take() else {
            return;
        };
        let token = client.cancel_token();
        let connector = self.connector.clone();
        let client = PooledClient::take(client);
        // Nothing awaits this task. It holds the permit, so that clients which connect and
        // disconnect cannot start more statements than there are connections.
        tokio::spawn(async move {
            connector.cancel(&token).await;
            drop((client, permit));
        });
    }
}
