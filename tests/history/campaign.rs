//! Rounds, one after the other, and what is left of the first that fails.
//!
//! Promises that sites are shared by rounds as long as they are alike, that a round which fails is
//! played again on a new site to make it smaller, and a text that says how to repeat it. Nothing
//! that fails while a round is played, a daemon's death or an assertion, goes further than here.

use std::any::Any;
use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::generate::{Menu, Round};
use super::play::{Failure, Tally, play};
use super::shrink::shrink;
use super::site::{Server, Site};
use super::step::Step;

/// How long a site may take to become quiet.
const PATIENCE: Duration = Duration::from_secs(30);

/// The same where a failure is made smaller; longer than any fault keeps the pipeline.
const PATIENCE_AGAIN: Duration = Duration::from_secs(12);

/// How many parts of a round that failed are tried.
const TRIALS: usize = 60;

/// How often a part of a round has to be right: what fails is often a race.
const PLAYS: usize = 3;

/// Rounds on one site: every look compares all runs that were ever played there.
const ROUNDS_OF_A_SITE: usize = 16;

pub(crate) struct Campaign {
    server: Server,
    menu: Menu,
    next_seed: u64,
    site: Option<(Site, usize)>,
}

impl Campaign {
    /// Rounds of this seed, the next one, and so on.
    pub(crate) async fn new(seed: u64, menu: Menu) -> Self {
        let server = if menu == Menu::All {
            Server::own().await
        } else {
            Server::shared().await
        };
        Self {
            server,
            menu,
            next_seed: seed,
            site: None,
        }
    }

    /// The next round. The error is for people: the seed, the fewest steps that fail, and why.
    pub(crate) async fn round(&mut self) -> Result<Tally, String> {
        let round = Round::new(self.next_seed, self.menu);
        self.next_seed = self.next_seed.wrapping_add(1);
        match self.attempt(&round).await {
            Ok(tally) => Ok(tally),
            Err(failure) => Err(self.tell(&round, failure).await),
        }
    }

    /// Takes its site down.
    pub(crate) async fn end(mut self) {
        if let Some((site, _)) = self.site.take() {
            site.close().await;
        }
    }

    async fn attempt(&mut self, round: &Round) -> Result<Tally, Failure> {
        let (mut site, rounds) = match self.site.take() {
            Some((site, rounds)) if site.cutoff == round.cutoff && rounds < ROUNDS_OF_A_SITE => {
                (site, rounds)
            }
            other => {
                if let Some((site, _)) = other {
                    site.close().await;
                }
                (Site::open(&self.server, round.cutoff).await, 0)
            }
        };
        let tally = caught(play(&mut site, &round.steps, PATIENCE)).await?;
        self.site = Some((site, rounds + 1));
        Ok(tally)
    }

    async fn tell(&self, round: &Round, failure: Failure) -> String {
        eprintln!("seed {} failed; looking for fewer steps", round.seed);
        let mut last = failure;
        let again = async |steps: &[Step]| {
            let outcome = async {
                let mut site = Site::open(&self.server, round.cutoff).await;
                let outcome = play(&mut site, steps, PATIENCE_AGAIN).await;
                site.close().await;
                outcome
            };
            caught(outcome).await.err()
        };
        let steps = fewest(round, &mut last, again).await;
        let mut text = format!("seed {}", round.seed);
        match steps {
            Some(steps) => {
                let _ = writeln!(
                    text,
                    ": {} of {} steps fail",
                    steps.len(),
                    round.steps.len()
                );
                steps.iter().for_each(|step| {
                    let _ = writeln!(text, "  {step}");
                });
            }
            None => text += " failed, and did not when it was played again by itself\n",
        }
        text + &last.text
    }
}

/// The fewest steps of a round that failed which still fail, and in `failure` why these do.
pub(crate) async fn fewest(
    round: &Round,
    failure: &mut Failure,
    mut again: impl AsyncFnMut(&[Step]) -> Option<Failure>,
) -> Option<Vec<Step>> {
    // Most of it is other flows.
    let blamed = failure.histories.first().copied();
    let mut blamed_alone = round.steps.clone();
    blamed_alone.retain(|step| match step {
        Step::Write { history, .. } => blamed.is_none_or(|blamed| *history == blamed),
        _ => true,
    });
    let mut fails = async |steps: &[Step]| {
        for _ in 0..PLAYS {
            if let Some(other) = again(steps).await {
                eprintln!("{} steps fail", steps.len());
                *failure = other;
                return true;
            }
        }
        false
    };
    let start = if fails(&blamed_alone).await {
        blamed_alone
    } else if fails(&round.steps).await {
        round.steps.clone()
    } else {
        return None;
    };
    Some(shrink(start, TRIALS, fails).await)
}

/// A panic while a round is played is a failure like any other.
pub(crate) async fn caught<T>(
    play: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match AssertUnwindSafe(play).catch_unwind().await {
        Ok(outcome) => outcome,
        Err(panic) => Err(Failure::new(message(&*panic))),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words").to_owned()
}
