//! The lives of simulated runs: what their clients write, and when.
//!
//! Owns the script and nothing that runs: the same seed gives the same lives, in the same order,
//! with the same pauses. Promises every kind of life that decides a status differently, in shares
//! that a site could have, and for each the status that it must end with. Performed by
//! [`super::traffic`].

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::status::Status;

const FLOWS: [&str; 4] = ["TrainFlow", "ScoreFlow", "ImportFlow", "ReportFlow"];
const MIDDLE: [&str; 4] = ["load", "train", "evaluate", "join"];
const USERS: [&str; 4] = ["ada", "grace", "edsger", "barbara"];
/// What stands in an `attempt_ok` that is none.
const MALFORMED: [&str; 3] = ["None", "", "maybe"];

/// From so far ahead of the clock, cut to whole seconds, a new run's heartbeat is an event at once.
/// One that is ahead by less, and still by more than a cutoff of a few seconds, waits for a sweep.
const TOLD_AHEAD_SECS: i64 = 7;

/// How fast the simulated site is.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// New runs a second, on average.
    pub runs_per_sec: f64,
    /// The time between two heartbeats, whole seconds; real clients take ten.
    pub heartbeat: Duration,
    /// The cutoff that the daemon runs with: those who are to be lost stay away for longer.
    pub cutoff: Duration,
}

/// One write, or the few that a client makes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// The flow, and its run with a first heartbeat so many seconds ahead of the clock; old clients
    /// send none.
    Run {
        /// Seconds ahead of the clock.
        first_heartbeat: Option<i64>,
    },
    /// A heartbeat, written under the service's condition.
    Heartbeat,
    /// The step and its task.
    Task {
        /// The step's name.
        step: &'static str,
    },
    /// The task starts: `attempt`, and what a task tells about itself.
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
    /// A change of the run's tags, in a `SERIALIZABLE` transaction.
    Tag,
    /// The end step's evidence for a run that does not exist.
    Orphan,
}

/// What becomes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// All steps succeed.
    Succeeds,
    /// The end step fails.
    EndFails,
    /// The end step fails and succeeds when retried.
    EndRetried,
    /// The end step fails, is retried, and the retry dies without a word: it reads running.
    EndRetryDies,
    /// The process dies before the end step.
    Crashes,
    /// It is silent for longer than the cutoff, comes back and succeeds.
    Resurrects,
    /// A client too old to send heartbeats, which succeeds.
    Silent,
    /// The first heartbeat lies ahead of the clock by more than the cutoff.
    ClockAhead,
    /// The end step writes an `attempt_ok` that is no boolean, and the process ends.
    Malformed,
}

const SHARES: [(Kind, u32); 9] = [
    (Kind::Succeeds, 55),
    (Kind::EndFails, 8),
    (Kind::EndRetried, 11),
    (Kind::EndRetryDies, 2),
    (Kind::Crashes, 9),
    (Kind::Resurrects, 6),
    (Kind::Silent, 4),
    (Kind::ClockAhead, 3),
    (Kind::Malformed, 2),
];

/// One run from its creation to its last write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// The flow's name.
    pub flow: &'static str,
    /// Who started it.
    pub user: &'static str,
    /// What becomes of it.
    pub kind: Kind,
    /// What is written, each with its time since the run's creation, in order.
    pub acts: Vec<(Duration, Act)>,
}

impl Life {
    /// What the run is once it has ended and the cutoff has passed.
    #[must_use]
    pub fn ends_as(&self) -> Status {
        match self.kind {
            Kind::Succeeds
            | Kind::EndRetried
            | Kind::Resurrects
            | Kind::Silent
            | Kind::ClockAhead => Status::Completed,
            Kind::EndFails | Kind::Crashes | Kind::Malformed => Status::Failed,
            Kind::EndRetryDies => Status::Running,
        }
    }
}

/// All lives of a seed, without end: each with the time between the run before and this one.
#[derive(Debug)]
pub struct Lives {
    rng: StdRng,
    pace: Pace,
}

impl Lives {
    /// The lives of this seed.
    #[must_use]
    pub fn new(seed: u64, pace: Pace) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            pace,
        }
    }

    fn kind(&mut self) -> Kind {
        let all: u32 = SHARES.iter().map(|(_, share)| share).sum();
        let mut ticket = self.rng.random_range(0..all);
        for (kind, share) in SHARES {
            if ticket < share {
                return kind;
            }
            ticket -= share;
        }
        Kind::Succeeds
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.rng.random_range(0..choices.len())]
    }
}

impl Iterator for Lives {
    type Item = (Duration, Life);

    fn next(&mut self) -> Option<Self::Item> {
        // Independent arrivals: their pauses are distributed exponentially.
        let pause = -(1.0 - self.rng.random::<f64>()).ln() / self.pace.runs_per_sec.max(0.001);
        let (flow, user, kind) = (self.one_of(&FLOWS), self.one_of(&USERS), self.kind());
        let acts = Script::new(self, kind).write();
        let life = Life {
            flow,
            user,
            kind,
            acts,
        };
        Some((Duration::from_secs_f64(pause), life))
    }
}

/// Writes one life down.
struct Script<'a> {
    lives: &'a mut Lives,
    kind: Kind,
    at: Duration,
    acts: Vec<(Duration, Act)>,
}

impl<'a> Script<'a> {
    fn new(lives: &'a mut Lives, kind: Kind) -> Self {
        Self {
            lives,
            kind,
            at: Duration::ZERO,
            acts: Vec::new(),
        }
    }

    fn write(mut self) -> Vec<(Duration, Act)> {
        let cutoff = self.lives.pace.cutoff;
        let first_heartbeat = match self.kind {
            Kind::Silent => None,
            Kind::ClockAhead => {
                let cutoff_secs = i64::try_from(cutoff.as_secs()).unwrap_or(i64::MAX);
                Some(cutoff_secs.saturating_add(2).max(TOLD_AHEAD_SECS))
            }
            _ => Some(0),
        };
        self.act(Act::Run { first_heartbeat });
        self.step("start");
        for step in MIDDLE {
            if self.lives.rng.random_bool(0.6) {
                self.step(step);
            }
        }
        let mut silences = Vec::new();
        match self.kind {
            Kind::Crashes => {
                self.task("train", 0);
                self.pause(100..900);
            }
            Kind::Resurrects => {
                let gone = self.at;
                self.at += cutoff + Duration::from_secs(1);
                self.pause(500..2500);
                silences.push(gone..self.at);
                self.end();
            }
            _ => self.end(),
        }
        self.heartbeats(&silences);
        self.acts.sort_by_key(|(at, _)| *at);
        self.acts
    }

    /// A step whose task succeeds.
    fn step(&mut self, step: &'static str) {
        self.task(step, 0);
        self.pause(300..2500);
        self.done(step, 0, "True");
        if self.lives.rng.random_bool(0.15) {
            self.act(Act::Tag);
        }
    }

    fn end(&mut self) {
        self.task("end", 0);
        self.pause(80..600);
        match self.kind {
            Kind::EndFails => self.done("end", 0, "False"),
            Kind::EndRetried => {
                self.done("end", 0, "False");
                self.pause(300..1200);
                self.attempt("end", 1);
                self.pause(200..900);
                self.done("end", 1, "True");
            }
            Kind::EndRetryDies => {
                self.done("end", 0, "False");
                self.pause(300..1200);
                self.attempt("end", 1);
            }
            Kind::Malformed => {
                let value = self.lives.one_of(&MALFORMED);
                self.done("end", 0, value);
            }
            _ => {
                self.done("end", 0, "True");
                if self.lives.rng.random_bool(0.2) {
                    self.act(Act::Tag);
                }
                if self.lives.rng.random_bool(0.02) {
                    self.act(Act::Orphan);
                }
            }
        }
    }

    fn task(&mut self, step: &'static str, number: u8) {
        self.act(Act::Task { step });
        self.attempt(step, number);
    }

    fn attempt(&mut self, step: &'static str, number: u8) {
        let copies = self.copies();
        self.act(Act::Attempt {
            step,
            number,
            copies,
        });
    }

    fn done(&mut self, step: &'static str, number: u8, ok: &'static str) {
        let copies = self.copies();
        self.act(Act::Done {
            step,
            number,
            ok,
            copies,
        });
    }

    /// One time in twenty the answer is lost, and the client writes again.
    fn copies(&mut self) -> u8 {
        if self.lives.rng.random_bool(0.05) {
            2
        } else {
            1
        }
    }

    fn act(&mut self, act: Act) {
        self.acts.push((self.at, act));
    }

    fn pause(&mut self, millis: std::ops::Range<u64>) {
        self.at += Duration::from_millis(self.lives.rng.random_range(millis));
    }

    /// From the creation to the process's end, but not while it is silent.
    fn heartbeats(&mut self, silences: &[std::ops::Range<Duration>]) {
        if self.kind == Kind::Silent {
            return;
        }
        let (end, every) = (self.at, self.lives.pace.heartbeat);
        let mut at = every;
        while at <= end {
            if !silences.iter().any(|silence| silence.contains(&at)) {
                self.acts.push((at, Act::Heartbeat));
            }
            at += every;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lives(seed: u64) -> Lives {
        let pace = Pace {
            runs_per_sec: 5.0,
            heartbeat: Duration::from_secs(1),
            cutoff: Duration::from_secs(3),
        };
        Lives::new(seed, pace)
    }

    #[test]
    fn a_seed_repeats_its_lives() {
        let (one, same): (Vec<_>, Vec<_>) =
            (lives(7).take(50).collect(), lives(7).take(50).collect());
        assert_eq!(one, same);
        assert_ne!(one, lives(8).take(50).collect::<Vec<_>>());
    }

    #[test]
    fn every_kind_lives_and_each_life_begins_with_its_run() {
        let all: Vec<Life> = lives(1).take(2000).map(|(_, life)| life).collect();
        for (kind, _) in SHARES {
            assert!(all.iter().any(|life| life.kind == kind), "{kind:?}");
        }
        for life in &all {
            assert!(matches!(life.acts[0], (Duration::ZERO, Act::Run { .. })));
            assert!(life.acts.is_sorted_by_key(|(at, _)| *at));
        }
    }

    #[test]
    fn the_resurrected_are_silent_for_longer_than_the_cutoff() {
        for (_, life) in lives(2).take(500) {
            let beats = life.acts.iter().filter(|(_, act)| {
                matches!(
                    act,
                    Act::Heartbeat
                        | Act::Run {
                            first_heartbeat: Some(_)
                        }
                )
            });
            let times: Vec<Duration> = beats.map(|(at, _)| *at).collect();
            let end = life.acts.last().expect("it was created").0;
            let gaps = times.iter().zip(times.iter().skip(1).chain([&end]));
            let silent = gaps.map(|(one, next)| *next - *one).max();
            let away = silent.is_some_and(|gap| gap > Duration::from_secs(3));
            assert_eq!(away, life.kind == Kind::Resurrects, "{life:?}");
        }
    }
}
