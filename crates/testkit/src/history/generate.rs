//! Generates a round from a seed: realistic and unrealistic histories, interleaved, with faults
//! between their steps.
//!
//! Promises the same round for the same seed and faults. Few distinct times are used, so that there
//! are ties, and metadata ids come in any order, as commits do. Called by [`super::campaign`].

use crate::oracle::Status;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::environment::WRITERS;
use super::step::{Change, Fault, Heartbeat, Step, Write};

/// Upstream's default, and one so short that many runs pass it while the round runs.
const CUTOFFS: [i64; 2] = [360, 6];

/// This many rounds of consecutive seeds have the same cutoff, and can share an environment.
const SAME_CUTOFF: u64 = 16;

/// The time of most metadata rows, milliseconds.
const SOME_TIME: i64 = 1_700_000_000_000;

const VALUES: [&str; 20] = [
    "True", "True", "True", "True", "False", "False", "False", "False", "False", "true", "FALSE",
    "t", "no", " off ", "1", "0", "rubbish", "", "o", "\"True\"",
];

/// Which faults a round may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Faults {
    /// None: only writes that fire triggers.
    None,
    /// Those that take a moment; also writes with triggers disabled.
    Quick,
    /// Also those that take seconds, and those that need a server of their own.
    All,
}

/// The histories that run at the same time, with their faults.
#[derive(Debug, Clone)]
pub struct Round {
    /// The seed that it was generated from.
    pub seed: u64,
    /// The cutoff of its environment, seconds.
    pub cutoff: i64,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

impl Round {
    /// The round of this seed.
    #[must_use]
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let [long, short] = CUTOFFS;
        let cutoff = if (seed / SAME_CUTOFF).is_multiple_of(2) {
            long
        } else {
            short
        };
        // Writes that fire no trigger wait for the reconciler, which does not correct runs close to
        // a deadline. Under the short cutoff, runs are always close to one.
        let bypasses_triggers = faults != Faults::None && cutoff == long && random.random();
        let histories = (0..WRITERS).map(|number| {
            let bypasses_triggers = bypasses_triggers && random.random_ratio(1, 2);
            Generator::new(&mut random, cutoff, bypasses_triggers).history(number)
        });
        let histories = histories.collect();
        let mut steps = interleaved(&mut random, histories);
        insert_faults(&mut random, &mut steps, faults, bypasses_triggers);
        Self {
            seed,
            cutoff,
            steps,
        }
    }
}

/// All histories in one list, each in its own order.
fn interleaved(random: &mut StdRng, histories: Vec<Vec<Step>>) -> Vec<Step> {
    let mut turns: Vec<usize> = Vec::new();
    for (number, history) in histories.iter().enumerate() {
        turns.resize(turns.len() + history.len(), number);
    }
    turns.shuffle(random);
    let mut histories: Vec<_> = histories.into_iter().map(Vec::into_iter).collect();
    turns
        .into_iter()
        .filter_map(|number| histories[number].next())
        .collect()
}

/// Inserts faults and checks between the steps; the end of a fault comes after its beginning.
fn insert_faults(
    random: &mut StdRng,
    steps: &mut Vec<Step>,
    faults: Faults,
    bypasses_triggers: bool,
) {
    use Fault::*;
    const CHEAP: [&[Fault]; 8] = [
        &[Kill, Start],
        &[Kill, Start],
        &[Join, Kill, Start, Leave],
        &[Join, Leave],
        &[Replace],
        &[CutSessions],
        &[CutNetwork],
        &[Migrate],
    ];
    const COSTLY: [&[Fault]; 6] = [
        &[Freeze, Thaw],
        &[Join, Freeze, Thaw],
        &[BlackHole, Heal],
        &[Crash],
        &[Restart],
        &[Kill, Crash, Start],
    ];
    let mut chosen: Vec<&[Fault]> = Vec::new();
    if faults != Faults::None {
        for _ in 0..random.random_range(1..=3) {
            chosen.push(pick(random, &CHEAP));
        }
        if bypasses_triggers && random.random_ratio(1, 3) {
            chosen.push(&[TriggersOff, TriggersOn]);
        }
    }
    if faults == Faults::All {
        chosen.push(pick(random, &COSTLY));
    }
    let mut events: Vec<Vec<Step>> = chosen
        .into_iter()
        .map(|faults| faults.iter().copied().map(Step::Fault).collect())
        .collect();
    // Between two checks, only the last write to a run is sure to have an effect, so there are many
    // checks; but if the reconciler must correct something, each check waits for it.
    let checks = if bypasses_triggers { 1..4 } else { 4..12 };
    events.push(vec![Step::Check; random.random_range(checks)]);
    for event in events {
        let mut places: Vec<usize> = event
            .iter()
            .map(|_| random.random_range(0..=steps.len()))
            .collect();
        places.sort_unstable();
        // From the end, so that the other places stay valid.
        for (place, step) in places.into_iter().zip(event).rev() {
            steps.insert(place, step);
        }
    }
}

fn pick<T: Copy>(random: &mut StdRng, from: &[T]) -> T {
    from[random.random_range(0..from.len())]
}

/// Generates one history.
struct Generator<'a> {
    random: &'a mut StdRng,
    cutoff: i64,
    bypasses_triggers: bool,
    /// The maximum number of its runs.
    runs: i32,
    /// Those that exist.
    existing: Vec<i32>,
    /// Numbers for metadata rows, in the order in which they will be used.
    unused: Vec<i64>,
    used: Vec<i64>,
}

impl<'a> Generator<'a> {
    fn new(random: &'a mut StdRng, cutoff: i64, bypasses_triggers: bool) -> Self {
        let mut unused: Vec<i64> = (1..=40).collect();
        unused.shuffle(random);
        Self {
            runs: random.random_range(1..=4),
            random,
            cutoff,
            bypasses_triggers,
            existing: Vec::new(),
            unused,
            used: Vec::new(),
        }
    }

    fn history(mut self, number: usize) -> Vec<Step> {
        let length = self.random.random_range(6..=20);
        let mut steps = Vec::with_capacity(length);
        for _ in 0..length {
            let write = self.write();
            let fires_triggers = !self.bypasses_triggers || self.random.random_ratio(3, 4);
            steps.push(Step::Write {
                history: number,
                write,
                fires_triggers,
            });
        }
        steps
    }

    fn write(&mut self) -> Write {
        if self.existing.is_empty() {
            return self.create_run();
        }
        let run = self.run();
        match self.random.random_range(0..100) {
            0..12 => self.create_run(),
            12..38 => Write::Heartbeat {
                run,
                heartbeat: self.heartbeat(),
            },
            38..72 => self.evidence(run),
            72..80 => self.change(run),
            80..86 => match self.used.is_empty() {
                true => self.evidence(run),
                false => Write::Erase {
                    id: pick(self.random, &self.used),
                },
            },
            86..88 => Write::Clear { run },
            88..91 => {
                self.existing.retain(|other| *other != run);
                Write::Remove { run }
            }
            _ if self.bypasses_triggers => Write::Edit {
                run,
                status: pick(self.random, &Status::ALL),
            },
            _ => Write::Tag { run },
        }
    }

    /// A run that exists or, if the reconciler corrects the consequences, sometimes one that does
    /// not exist yet.
    fn run(&mut self) -> i32 {
        if self.bypasses_triggers && self.random.random_ratio(1, 12) {
            return self.random.random_range(1..=self.runs);
        }
        pick(self.random, &self.existing)
    }

    fn create_run(&mut self) -> Write {
        let run = self.random.random_range(1..=self.runs);
        if !self.existing.contains(&run) {
            self.existing.push(run);
        }
        Write::Run {
            run,
            heartbeat: self.heartbeat(),
        }
    }

    /// A heartbeat around the clock or around an edge of the cutoff, so close that its deadline
    /// passes soon; but not if the reconciler must correct, because it skips runs close to an edge.
    fn heartbeat(&mut self) -> Heartbeat {
        let from_now = match self.random.random_range(0..100) {
            0..40 => -self.random.random_range(0..3),
            40..50 => -1_000,
            50..58 => return Heartbeat::None,
            58..66 => self.cutoff / 2,
            66..78 if !self.bypasses_triggers => -self.cutoff + self.random.random_range(0..2),
            78..88 if !self.bypasses_triggers => self.cutoff + self.random.random_range(1..3),
            66..92 => 1_000_000,
            92..96 => -60,
            _ => return Heartbeat::At(pick(self.random, &[i64::MIN, i64::MAX, 0, -1])),
        };
        Heartbeat::FromNow(from_now)
    }

    fn evidence(&mut self, run: i32) -> Write {
        let id = self.unused.pop().expect("more numbers than steps");
        self.used.push(id);
        Write::Evidence {
            id,
            run,
            step: self.step(),
            field: self.field(),
            value: pick(self.random, &VALUES),
            ts_ms: self.time(),
        }
    }

    fn change(&mut self, run: i32) -> Write {
        if self.used.is_empty() {
            return self.evidence(run);
        }
        let change = match self.random.random_range(0..5) {
            0 => Change::Value(pick(self.random, &VALUES)),
            1 => Change::Time(self.time()),
            2 => Change::Run(run),
            3 => Change::Step(self.step()),
            _ => Change::Field(self.field()),
        };
        Write::Change {
            id: pick(self.random, &self.used),
            change,
        }
    }

    fn step(&mut self) -> &'static str {
        match self.random.random_range(0..10) {
            0 => "start",
            1 => "End",
            _ => "end",
        }
    }

    fn field(&mut self) -> &'static str {
        match self.random.random_range(0..20) {
            0..11 => "attempt_ok",
            11..19 => "attempt",
            _ => "attempt-done",
        }
    }

    fn time(&mut self) -> i64 {
        match self.random.random_range(0..20) {
            0 => i64::MIN,
            1 => i64::MAX,
            _ => SOME_TIME + self.random.random_range(0..4),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_generate_equal_rounds() {
        for seed in 0..200 {
            let round = Round::new(seed, Faults::All);
            assert_eq!(round.steps, Round::new(seed, Faults::All).steps);
            assert_ne!(round.steps, Round::new(seed + 1, Faults::All).steps);
        }
    }
}
