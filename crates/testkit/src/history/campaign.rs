//! Runs rounds one after the other, and reduces the first that fails.
//!
//! Promises that rounds with the same parameters share an environment; that a failed round is run
//! again in new environments, to find a smaller one that fails; and that its report says how to
//! repeat it. A panic while a round runs, such as a daemon's death, is a failure of that round and
//! is not propagated. Called by the tests and by `make soak`.

use std::any::Any;
use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::environment::{Environment, Server};
use super::failure::Failure;
use super::generate::{Faults, Round};
use super::run::{Totals, run_steps};
use super::shrink::shrink;
use super::step::Step;

/// How long an environment may take to settle.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The same while a failed round is reduced; longer than any fault stops the pipeline.
const RETRY_TIMEOUT: Duration = Duration::from_secs(12);

/// The maximum number of parts of a failed round that are tried.
const TRIALS: usize = 60;

/// How many times a part has to pass before it counts as passing: many failures are races.
const RUNS_OF_A_PART: usize = 3;

/// Rounds of one environment: every check compares all runs that were ever written in it.
const ROUNDS_OF_AN_ENVIRONMENT: usize = 16;

/// Rounds of consecutive seeds.
pub struct Campaign {
    server: Server,
    faults: Faults,
    next_seed: u64,
    environment: Option<(Environment, usize)>,
}

impl Campaign {
    /// Rounds of this seed, the next one, and so on.
    pub async fn new(seed: u64, faults: Faults) -> Self {
        let server = if faults == Faults::All {
            Server::own().await
        } else {
            Server::shared().await
        };
        Self {
            server,
            faults,
            next_seed: seed,
            environment: None,
        }
    }

    /// Runs the next round.
    ///
    /// # Errors
    /// The report of the failure: the seed, the fewest steps that fail, and the reason.
    pub async fn round(&mut self) -> Result<Totals, String> {
        let round = Round::new(self.next_seed, self.faults);
        self.next_seed = self.next_seed.wrapping_add(1);
        match self.attempt(&round).await {
            Ok(totals) => Ok(totals),
            Err(failure) => Err(self.describe(&round, failure).await),
        }
    }

    /// Removes its environment.
    pub async fn end(mut self) {
        if let Some((environment, _)) = self.environment.take() {
            environment.close().await;
        }
    }

    async fn attempt(&mut self, round: &Round) -> Result<Totals, Failure> {
        let (mut environment, rounds) = match self.environment.take() {
            Some((environment, rounds))
                if environment.cutoff == round.cutoff && rounds < ROUNDS_OF_AN_ENVIRONMENT =>
            {
                (environment, rounds)
            }
            other => {
                if let Some((environment, _)) = other {
                    environment.close().await;
                }
                (Environment::open(&self.server, round.cutoff).await, 0)
            }
        };
        let totals = caught(run_steps(&mut environment, &round.steps, TIMEOUT)).await?;
        self.environment = Some((environment, rounds + 1));
        Ok(totals)
    }

    async fn describe(&self, round: &Round, failure: Failure) -> String {
        eprintln!("seed {} failed; looking for fewer steps", round.seed);
        let mut last = failure;
        let again = async |steps: &[Step]| {
            let outcome = async {
                let mut environment = Environment::open(&self.server, round.cutoff).await;
                let outcome = run_steps(&mut environment, steps, RETRY_TIMEOUT).await;
                environment.close().await;
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
            None => text += " failed, and passed when it was run again by itself\n",
        }
        text + &last.text
    }
}

/// The fewest steps of a failed round that still fail; `failure` then says why these do. None if
/// the round passes when it is run again.
pub async fn fewest(
    round: &Round,
    failure: &mut Failure,
    mut again: impl AsyncFnMut(&[Step]) -> Option<Failure>,
) -> Option<Vec<Step>> {
    // Most steps belong to other flows.
    let blamed = failure.histories.first().copied();
    let mut blamed_alone = round.steps.clone();
    blamed_alone.retain(|step| match step {
        Step::Write { history, .. } => blamed.is_none_or(|blamed| *history == blamed),
        _ => true,
    });
    let mut fails = async |steps: &[Step]| {
        for _ in 0..RUNS_OF_A_PART {
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

/// A panic while a round runs is a failure like any other.
pub async fn caught<T>(round: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match AssertUnwindSafe(round).catch_unwind().await {
        Ok(outcome) => outcome,
        Err(panic) => Err(Failure::new(message(&*panic))),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").to_owned()
}
