//! The steps of a walk, in key order, with the next ones compared while one is looked at.
//!
//! Where a step ends is asked for before the step is compared, so that the one after it can begin.
//! Promises that no run is passed by: a step that ended elsewhere, because runs came or went
//! meanwhile, sends the walk back to where that step really ended.

use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::error::Error;
use crate::pg::Db;
use crate::status::RunKey;
use crate::store::runs::{Compared, Detail, compare, skip};

/// See the module.
pub struct Steps<'a> {
    db: &'a Db,
    batch: i32,
    detail: Detail,
    /// Steps compared at the same time.
    at_once: usize,
    position: Option<RunKey>,
    ahead: BoxStream<'a, Result<Step, Error>>,
}

/// A step, and where it was to end.
struct Step {
    compared: Compared,
    expected: Option<RunKey>,
}

impl std::fmt::Debug for Steps<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Steps")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl<'a> Steps<'a> {
    /// Begins after `position`; compares `at_once` batches at the same time.
    #[must_use]
    pub fn after(
        db: &'a Db,
        position: Option<RunKey>,
        batch: i32,
        detail: Detail,
        at_once: usize,
    ) -> Self {
        Self {
            db,
            batch,
            detail,
            at_once,
            position,
            ahead: stream::empty().boxed(),
        }
    }

    /// The next step; one with no last run is the end.
    ///
    /// # Errors
    /// If a call fails.
    pub async fn next(&mut self) -> Result<Compared, Error> {
        if self.at_once == 1 {
            let compared =
                compare(self.db, self.position.as_ref(), self.batch, self.detail).await?;
            self.position.clone_from(&compared.last);
            return Ok(compared);
        }
        let step = match self.ahead.try_next().await? {
            Some(step) => step,
            // The first, and the one that finds nothing behind the last.
            None => {
                self.ahead = self.begin_here();
                let first = self.ahead.try_next().await?;
                first.expect("there is a step from everywhere")
            }
        };
        self.position.clone_from(&step.compared.last);
        if step.compared.last != step.expected {
            self.ahead = stream::empty().boxed();
        }
        Ok(step.compared)
    }

    fn begin_here(&self) -> BoxStream<'a, Result<Step, Error>> {
        let (db, batch, detail) = (self.db, self.batch, self.detail);
        stream::try_unfold(Some(self.position.clone()), move |start| async move {
            let Some(start) = start else {
                return Ok(None);
            };
            let end = skip(db, start.as_ref(), batch).await?;
            let next = end.clone().map(Some);
            Ok::<_, Error>(Some(((start, end), next)))
        })
        .map_ok(move |(start, expected)| async move {
            let compared = compare(db, start.as_ref(), batch, detail).await?;
            Ok(Step { compared, expected })
        })
        .try_buffered(self.at_once)
        .boxed()
    }
}
