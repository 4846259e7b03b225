//! The batches of a scan, in key order; the next ones are compared while one is handled.
//!
//! The expected end of a batch is read before the batch is compared, so that the next one can
//! start. Promises that no run is left out: if a batch ended at another run, because runs were
//! added or removed meanwhile, the scan continues after the run at which it did end.

use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::error::Error;
use crate::status::RunKey;
use crate::store::{Compared, Detail, Store};

/// See the module.
pub struct Batches<'a> {
    store: &'a Store,
    size: i32,
    detail: Detail,
    /// Batches compared at the same time.
    concurrency: usize,
    position: Option<RunKey>,
    ahead: BoxStream<'a, Result<Batch, Error>>,
}

/// A batch, and the run at which it was expected to end.
struct Batch {
    compared: Compared,
    expected_end: Option<RunKey>,
}

impl std::fmt::Debug for Batches<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batches")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl<'a> Batches<'a> {
    /// Batches of `size` runs after `position`, one at a time.
    #[must_use]
    pub fn after(store: &'a Store, position: Option<RunKey>, size: i32, detail: Detail) -> Self {
        Self {
            store,
            size,
            detail,
            concurrency: 1,
            position,
            ahead: stream::empty().boxed(),
        }
    }

    /// The same batches, with `concurrency` of them compared at the same time.
    #[must_use]
    pub fn concurrently(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency;
        self
    }

    /// The next batch; one without a last run is the end.
    ///
    /// # Errors
    /// If a call fails.
    pub async fn next(&mut self) -> Result<Compared, Error> {
        if self.concurrency == 1 {
            let compared = self
                .store
                .compare(self.position.as_ref(), self.size, self.detail)
                .await?;
            self.position.clone_from(&compared.last);
            return Ok(compared);
        }
        let batch = match self.ahead.try_next().await? {
            Some(batch) => batch,
            // The first batch, and the one that finds nothing after the last.
            None => {
                self.ahead = self.read_ahead();
                let first = self.ahead.try_next().await?;
                first.expect("there is a batch from every position")
            }
        };
        self.position.clone_from(&batch.compared.last);
        if batch.compared.last != batch.expected_end {
            self.ahead = stream::empty().boxed();
        }
        Ok(batch.compared)
    }

    fn read_ahead(&self) -> BoxStream<'a, Result<Batch, Error>> {
        let (store, size, detail) = (self.store, self.size, self.detail);
        stream::try_unfold(Some(self.position.clone()), move |start| async move {
            let Some(start) = start else {
                return Ok(None);
            };
            let end = store.key_after(start.as_ref(), size).await?;
            let next = end.clone().map(Some);
            Ok::<_, Error>(Some(((start, end), next)))
        })
        .map_ok(move |(start, expected_end)| async move {
            let compared = store.compare(start.as_ref(), size, detail).await?;
            Ok(Batch {
                compared,
                expected_end,
            })
        })
        .try_buffered(self.concurrency)
        .boxed()
    }
}
