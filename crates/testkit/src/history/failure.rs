//! Why a round failed.

use std::collections::BTreeSet;

/// Why a round failed.
#[derive(Debug)]
pub struct Failure {
    /// The reason, as text.
    pub text: String,
    /// The histories whose runs differed, by their number in the round.
    pub histories: BTreeSet<usize>,
}

impl Failure {
    /// A failure of no history in particular.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self {
            text,
            histories: BTreeSet::new(),
        }
    }
}
