//! Bounds the memory of answers that wait for their clients.
//!
//! An answer holds a share of a budget of bytes until its last byte is handed to the system. Promises
//! that slow clients, however many, hold about the budget (an answer may be somewhat larger than its
//! share). Lists and pages have a budget each, so that slow readers of lists never delay a page.

use std::sync::Arc;

use axum::body::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes for answers of one kind.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    free: Arc<Semaphore>,
    total: usize,
}

/// A part of a budget, which is free again when it is dropped.
#[derive(Debug)]
pub(super) struct Share(OwnedSemaphorePermit);

impl Budget {
    pub(super) fn new(total: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(total)),
            total,
        }
    }

    /// Waits for a share. An answer that is larger than the budget gets all of it.
    pub(super) async fn share(&self, bytes: usize) -> Share {
        let free = Arc::clone(&self.free);
        let permit = free.acquire_many_owned(self.permits(bytes)).await;
        Share(permit.expect("a budget is never closed"))
    }

    /// A share, if it is free now.
    pub(super) fn try_share(&self, bytes: usize) -> Option<Share> {
        let free = Arc::clone(&self.free);
        free.try_acquire_many_owned(self.permits(bytes))
            .ok()
            .map(Share)
    }

    /// Bytes in all.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// Whether this share is the whole budget.
    pub(super) fn is_whole(&self, share: &Share) -> bool {
        share.bytes() == self.total
    }

    fn permits(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.min(self.total)).unwrap_or(u32::MAX)
    }
}

impl Share {
    pub(super) fn bytes(&self) -> usize {
        self.0.num_permits()
    }

    /// Adds another share of the same budget.
    pub(super) fn add(&mut self, other: Self) {
        self.0.merge(other.0);
    }

    /// Part of an answer, which holds the share until it is sent. Returns what it does not need.
    pub(super) fn hold(mut self, content: Vec<u8>) -> Bytes {
        let surplus = self.bytes().saturating_sub(content.len());
        drop(self.0.split(surplus));
        Bytes::from_owner(Held {
            content,
            _share: self,
        })
    }
}

struct Held {
    content: Vec<u8>,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

#[cfg(test)]
mod tests {
    use super::Budget;

    #[tokio::test]
    async fn a_share_is_free_again_when_the_last_part_is_sent() {
        let budget = Budget::new(100);
        let share = budget.share(80).await;
        assert!(budget.try_share(30).is_none());
        let mut answer = share.hold(vec![0; 50]);
        assert!(budget.try_share(50).is_some(), "the surplus is returned");
        let sent = answer.split_to(20);
        drop(sent);
        assert!(budget.try_share(51).is_none());
        drop(answer);
        assert!(budget.try_share(100).is_some());
    }

    #[tokio::test]
    async fn an_answer_beyond_the_budget_gets_all_of_it() {
        let budget = Budget::new(100);
        let share = budget.share(1000).await;
        assert!(budget.is_whole(&share));
        drop(share.hold(vec![0; 1000]));
        let part = budget.share(99).await;
        assert!(!budget.is_whole(&part));
    }
}
