//! The seed of a random test.
//!
//! Owns the one variable that repeats a random test, `STATUS_INDEXER_TEST_SEED`. Promises that a
//! test that fails prints its seed. Called by every test that makes random choices.

use std::fmt;
use std::thread;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

/// Repeats a random test: the number that its failure printed.
pub const VARIABLE: &str = "STATUS_INDEXER_TEST_SEED";

/// The source of a random test's choices. Prints itself when the test fails.
#[derive(Debug)]
pub struct Seed(u64);

impl Seed {
    /// The seed in the variable, or a new one.
    ///
    /// # Panics
    /// If the variable holds no number.
    #[must_use]
    pub fn from_env() -> Self {
        let requested = std::env::var(VARIABLE).ok();
        Self(requested.map_or_else(rand::random, |text| {
            text.parse().expect("a seed is a number")
        }))
    }

    /// A given seed.
    #[must_use]
    pub fn of(number: u64) -> Self {
        Self(number)
    }

    /// The number that repeats the test.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0
    }

    /// A generator; equal seeds and numbers give equal generators.
    #[must_use]
    pub fn generator(&self, number: u64) -> StdRng {
        StdRng::seed_from_u64(self.0.wrapping_add(number))
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "repeat with {VARIABLE}={}", self.0)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{self}");
        }
    }
}
