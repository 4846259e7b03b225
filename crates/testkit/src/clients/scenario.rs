//! Scenarios of simulated runs: what their clients write, and when.
//!
//! Executes nothing: the same seed gives the same scenarios, in the same order, with the same
//! pauses. Promises every kind of scenario that decides a status differently, in realistic
//! proportions, and for each the status that it must end with. Executed by
//! [`super::traffic`].

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::oracle::Status;

const FLOWS: [&str; 4] = ["TrainFlow", "ScoreFlow", "ImportFlow", "ReportFlow"];
const MIDDLE: [&str; 4] = ["load", "train", "evaluate", "join"];
const USERS: [&str; 4] = ["ada", "grace", "edsger", "barbara"];
/// Values of `attempt_ok` that are not booleans.
const MALFORMED: [&str; 3] = ["None", "", "maybe"];

/// A new run whose heartbeat is ahead of the clock by at least this many whole seconds enqueues an
/// event. If it is ahead by less, but by more than a cutoff of a few seconds, only a sweep finds
/// the run.
const EVENT_AHEAD_SECS: i64 = 7;

/// How fast the simulated clients are.
#[derive(Debug, Clone, Copy)]
pub struct ClientRates {
    /// New runs a second, on average.
    pub runs_per_sec: f64,
    /// The time between two heartbeats, whole seconds; for real clients it is ten.
    pub heartbeat: Duration,
    /// The cutoff of the daemon: a client whose run must fail pauses for longer.
    pub cutoff: Duration,
}

/// One write of a client, or a few that it makes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// Creates the flow and its run, with a first heartbeat; old clients send none.
    Run {
        /// Seconds ahead of the clock.
        first_heartbeat: Option<i64>,
    },
    /// Sends a heartbeat, which the service writes if the last one is old enough.
    Heartbeat,
    /// Creates the step and its task.
    Task {
        /// The step's name.
        step: &'static str,
    },
    /// The task starts: `attempt`, and the metadata that a task registers at its start.
    Attempt {
        /// The step's name.
        step: &'static str,
        /// The attempt, from 0.
        number: u8,
        /// How many times each row is written: clients retry.
        copies: u8,
    },
    /// The task ends: `attempt-done` and `attempt_ok`.
    Done {
        /// The step's name.
        step: &'static str,
        /// The attempt, from 0.
        number: u8,
        /// The value of `attempt_ok`.
        ok: &'static str,
        /// How many times each row is written.
        copies: u8,
    },
    /// Changes the run's tags, in a `SERIALIZABLE` transaction.
    Tag,
    /// Writes the end step's evidence for a run that does not exist.
    Orphan,
}

/// How a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All steps succeed.
    Succeeds,
    /// The end step fails.
    EndFails,
    /// The end step fails and succeeds when retried.
    EndRetried,
    /// The end step fails, is retried, and the retry dies without a trace: its status stays
    /// running.
    EndRetryDies,
    /// The process dies before the end step.
    Crashes,
    /// It sends no heartbeat for longer than the cutoff, then continues and succeeds.
    Resurrects,
    /// A client too old to send heartbeats, which succeeds.
    NoHeartbeats,
    /// The first heartbeat lies ahead of the clock by more than the cutoff.
    ClockAhead,
    /// The end step writes an `attempt_ok` that is not a boolean, and the process ends.
    Malformed,
}

const SHARES: [(Ending, u32); 9] = [
    (Ending::Succeeds, 55),
    (Ending::EndFails, 8),
    (Ending::EndRetried, 11),
    (Ending::EndRetryDies, 2),
    (Ending::Crashes, 9),
    (Ending::Resurrects, 6),
    (Ending::NoHeartbeats, 4),
    (Ending::ClockAhead, 3),
    (Ending::Malformed, 2),
];

/// What the client of one run writes, from its creation to the last write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// The flow's name.
    pub flow: &'static str,
    /// Who started it.
    pub user: &'static str,
    /// How it ends.
    pub ending: Ending,
    /// Each write with its time since the run's creation, in order.
    pub writes: Vec<(Duration, Write)>,
}

impl Scenario {
    /// The status of the run once it has ended and the cutoff has passed.
    #[must_use]
    pub fn final_status(&self) -> Status {
        match self.ending {
            Ending::Succeeds
            | Ending::EndRetried
            | Ending::Resurrects
            | Ending::NoHeartbeats
            | Ending::ClockAhead => Status::Completed,
            Ending::EndFails | Ending::Crashes | Ending::Malformed => Status::Failed,
            Ending::EndRetryDies => Status::Running,
        }
    }
}

/// The endless sequence of a seed's scenarios, each with the pause after the previous one.
#[derive(Debug)]
pub struct Scenarios {
    rng: StdRng,
    rates: ClientRates,
}

impl Scenarios {
    /// The scenarios of this seed.
    #[must_use]
    pub fn new(seed: u64, rates: ClientRates) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            rates,
        }
    }

    fn ending(&mut self) -> Ending {
        let all: u32 = SHARES.iter().map(|(_, share)| share).sum();
        let mut ticket = self.rng.random_range(0..all);
        for (ending, share) in SHARES {
            if ticket < share {
                return ending;
            }
            ticket -= share;
        }
        Ending::Succeeds
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.rng.random_range(0..choices.len())]
    }
}

impl Iterator for Scenarios {
    type Item = (Duration, Scenario);

    fn next(&mut self) -> Option<Self::Item> {
        // Independent arrivals: their pauses are distributed exponentially.
        let pause = -(1.0 - self.rng.random::<f64>()).ln() / self.rates.runs_per_sec.max(0.001);
        let (flow, user, ending) = (self.one_of(&FLOWS), self.one_of(&USERS), self.ending());
        let writes = Builder::new(self, ending).build();
        let scenario = Scenario {
            flow,
            user,
            ending,
            writes,
        };
        Some((Duration::from_secs_f64(pause), scenario))
    }
}

/// Builds one scenario.
struct Builder<'a> {
    scenarios: &'a mut Scenarios,
    ending: Ending,
    at: Duration,
    writes: Vec<(Duration, Write)>,
}

impl<'a> Builder<'a> {
    fn new(scenarios: &'a mut Scenarios, ending: Ending) -> Self {
        Self {
            scenarios,
            ending,
            at: Duration::ZERO,
            writes: Vec::new(),
        }
    }

    fn build(mut self) -> Vec<(Duration, Write)> {
        let cutoff = self.scenarios.rates.cutoff;
        let first_heartbeat = match self.ending {
            Ending::NoHeartbeats => None,
            Ending::ClockAhead => {
                let cutoff_secs = i64::try_from(cutoff.as_secs()).unwrap_or(i64::MAX);
                Some(cutoff_secs.saturating_add(2).max(EVENT_AHEAD_SECS))
            }
            _ => Some(0),
        };
        self.write(Write::Run { first_heartbeat });
        self.step("start");
        for step in MIDDLE {
            if self.scenarios.rng.random_bool(0.6) {
                self.step(step);
            }
        }
        let mut pauses = Vec::new();
        match self.ending {
            Ending::Crashes => {
                self.task("train", 0);
                self.pause(100..900);
            }
            Ending::Resurrects => {
                let start = self.at;
                self.at += cutoff + Duration::from_secs(1);
                self.pause(500..2500);
                pauses.push(start..self.at);
                self.end();
            }
            _ => self.end(),
        }
        self.heartbeats(&pauses);
        self.writes.sort_by_key(|(at, _)| *at);
        self.writes
    }

    /// A step whose task succeeds.
    fn step(&mut self, step: &'static str) {
        self.task(step, 0);
        self.pause(300..2500);
        self.done(step, 0, "True");
        if self.scenarios.rng.random_bool(0.15) {
            self.write(Write::Tag);
        }
    }

    fn end(&mut self) {
        self.task("end", 0);
        self.pause(80..600);
        match self.ending {
            Ending::EndFails => self.done("end", 0, "False"),
            Ending::EndRetried => {
                self.done("end", 0, "False");
                self.pause(300..1200);
                self.attempt("end", 1);
                self.pause(200..900);
                self.done("end", 1, "True");
            }
            Ending::EndRetryDies => {
                self.done("end", 0, "False");
                self.pause(300..1200);
                self.attempt("end", 1);
            }
            Ending::Malformed => {
                let value = self.scenarios.one_of(&MALFORMED);
                self.done("end", 0, value);
            }
            _ => {
                self.done("end", 0, "True");
                if self.scenarios.rng.random_bool(0.2) {
                    self.write(Write::Tag);
                }
                if self.scenarios.rng.random_bool(0.02) {
                    self.write(Write::Orphan);
                }
            }
        }
    }

    fn task(&mut self, step: &'static str, number: u8) {
        self.write(Write::Task { step });
        self.attempt(step, number);
    }

    fn attempt(&mut self, step: &'static str, number: u8) {
        let copies = self.copies();
        self.write(Write::Attempt {
            step,
            number,
            copies,
        });
    }

    fn done(&mut self, step: &'static str, number: u8, ok: &'static str) {
        let copies = self.copies();
        self.write(Write::Done {
            step,
            number,
            ok,
            copies,
        });
    }

    /// In one of twenty cases the answer is lost, and the client repeats the write.
    fn copies(&mut self) -> u8 {
        if self.scenarios.rng.random_bool(0.05) {
            2
        } else {
            1
        }
    }

    fn write(&mut self, write: Write) {
        self.writes.push((self.at, write));
    }

    fn pause(&mut self, millis: std::ops::Range<u64>) {
        self.at += Duration::from_millis(self.scenarios.rng.random_range(millis));
    }

    /// From the run's creation to the end of its process, except during a pause.
    fn heartbeats(&mut self, pauses: &[std::ops::Range<Duration>]) {
        if self.ending == Ending::NoHeartbeats {
            return;
        }
        let (end, every) = (self.at, self.scenarios.rates.heartbeat);
        let mut at = every;
        while at <= end {
            if !pauses.iter().any(|pause| pause.contains(&at)) {
                self.writes.push((at, Write::Heartbeat));
            }
            at += every;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenarios(seed: u64) -> Scenarios {
        let rates = ClientRates {
            runs_per_sec: 5.0,
            heartbeat: Duration::from_secs(1),
            cutoff: Duration::from_secs(3),
        };
        Scenarios::new(seed, rates)
    }

    #[test]
    fn equal_seeds_give_equal_scenarios() {
        let (one, same): (Vec<_>, Vec<_>) = (
            scenarios(7).take(50).collect(),
            scenarios(7).take(50).collect(),
        );
        assert_eq!(one, same);
        assert_ne!(one, scenarios(8).take(50).collect::<Vec<_>>());
    }

    #[test]
    fn every_ending_occurs_and_each_scenario_begins_with_its_run() {
        let all: Vec<Scenario> = scenarios(1)
            .take(2000)
            .map(|(_, scenario)| scenario)
            .collect();
        for (ending, _) in SHARES {
            let occurs = all.iter().any(|scenario| scenario.ending == ending);
            assert!(occurs, "{ending:?}");
        }
        for scenario in &all {
            assert!(matches!(
                scenario.writes[0],
                (Duration::ZERO, Write::Run { .. })
            ));
            assert!(scenario.writes.is_sorted_by_key(|(at, _)| *at));
        }
    }

    #[test]
    fn only_resurrected_runs_pause_their_heartbeats_for_longer_than_the_cutoff() {
        for (_, scenario) in scenarios(2).take(500) {
            let heartbeats = scenario.writes.iter().filter(|(_, write)| {
                matches!(
                    write,
                    Write::Heartbeat
                        | Write::Run {
                            first_heartbeat: Some(_)
                        }
                )
            });
            let times: Vec<Duration> = heartbeats.map(|(at, _)| *at).collect();
            let end = scenario.writes.last().expect("it has a first write").0;
            let gaps = times.iter().zip(times.iter().skip(1).chain([&end]));
            let longest = gaps.map(|(one, next)| *next - *one).max();
            let lost = longest.is_some_and(|gap| gap > Duration::from_secs(3));
            assert_eq!(lost, scenario.ending == Ending::Resurrects, "{scenario:?}");
        }
    }
}
