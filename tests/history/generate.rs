//! Makes a round from a seed: histories as they happen at real sites and beside them, shuffled
//! together, and faults.
//!
//! Promises the same round for the same seed and menu. Times are few, so that there are ties, and
//! metadata ids are in any order, as commits are.

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use status_indexer::status::Status;

use super::site::WRITERS;
use super::step::{Beat, Change, Fault, Step, Write};

/// Upstream's default, and one so short that many runs pass it while they are played.
const CUTOFFS: [i64; 2] = [360, 6];

/// Rounds of so many seeds in a row have the same cutoff, and can share a site.
const SAME: u64 = 16;

/// The time of most metadata rows, milliseconds.
const SOME_TIME: i64 = 1_700_000_000_000;

const VALUES: [&str; 20] = [
    "True", "True", "True", "True", "False", "False", "False", "False", "False", "true", "FALSE",
    "t", "no", " off ", "1", "0", "rubbish", "", "o", "\"True\"",
];

/// Which faults a round may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Menu {
    /// None: writes that triggers are told of, and nothing else.
    Plain,
    /// Those that take a moment.
    Cheap,
    /// Also those that take seconds, and a server that may be harmed.
    All,
}

/// What is played at once.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    pub(crate) seed: u64,
    /// Seconds.
    pub(crate) cutoff: i64,
    pub(crate) steps: Vec<Step>,
}

impl Round {
    pub(crate) fn new(seed: u64, menu: Menu) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let [long, short] = CUTOFFS;
        let cutoff = if (seed / SAME).is_multiple_of(2) {
            long
        } else {
            short
        };
        // What triggers are not told of waits for the walk, which leaves runs alone that are close
        // to a deadline: under the short cutoff that is all the time.
        let unheard = menu != Menu::Plain && cutoff == long && random.random();
        let histories = (0..WRITERS).map(|number| {
            let unheard = unheard && random.random_ratio(1, 2);
            Author::new(&mut random, cutoff, unheard).history(number)
        });
        let histories = histories.collect();
        let mut steps = shuffled(&mut random, histories);
        befall(&mut random, &mut steps, menu, unheard);
        Self {
            seed,
            cutoff,
            steps,
        }
    }
}

/// All histories in one list, each in its own order.
fn shuffled(random: &mut StdRng, histories: Vec<Vec<Step>>) -> Vec<Step> {
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

/// Puts faults between the steps, those that end one later than those that begin it.
fn befall(random: &mut StdRng, steps: &mut Vec<Step>, menu: Menu, unheard: bool) {
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
    if menu != Menu::Plain {
        for _ in 0..random.random_range(1..=3) {
            chosen.push(pick(random, &CHEAP));
        }
        if unheard && random.random_ratio(1, 3) {
            chosen.push(&[TriggersOff, TriggersOn]);
        }
    }
    if menu == Menu::All {
        chosen.push(pick(random, &COSTLY));
    }
    let mut events: Vec<Vec<Step>> = chosen
        .into_iter()
        .map(|faults| faults.iter().copied().map(Step::Fault).collect())
        .collect();
    // Between two looks all but the last write to a run may count for nothing; but where the walk
    // must mend something, each look waits for it.
    let looks = if unheard { 1..4 } else { 4..12 };
    events.push(vec![Step::Settle; random.random_range(looks)]);
    for event in events {
        let mut places: Vec<usize> = event
            .iter()
            .map(|_| random.random_range(0..=steps.len()))
            .collect();
        places.sort_unstable();
        // From the end, so that places stay what they are.
        for (place, step) in places.into_iter().zip(event).rev() {
            steps.insert(place, step);
        }
    }
}

fn pick<T: Copy>(random: &mut StdRng, from: &[T]) -> T {
    from[random.random_range(0..from.len())]
}

/// Makes up one history.
struct Author<'a> {
    random: &'a mut StdRng,
    cutoff: i64,
    unheard: bool,
    /// How many runs it may have.
    runs: i32,
    /// Those that are there.
    born: Vec<i32>,
    /// Numbers for metadata rows, in the order in which they will be used.
    unused: Vec<i64>,
    used: Vec<i64>,
}

impl<'a> Author<'a> {
    fn new(random: &'a mut StdRng, cutoff: i64, unheard: bool) -> Self {
        let mut unused: Vec<i64> = (1..=40).collect();
        unused.shuffle(random);
        Self {
            runs: random.random_range(1..=4),
            random,
            cutoff,
            unheard,
            born: Vec::new(),
            unused,
            used: Vec::new(),
        }
    }

    fn history(mut self, number: usize) -> Vec<Step> {
        let length = self.random.random_range(6..=20);
        let mut steps = Vec::with_capacity(length);
        for _ in 0..length {
            let write = self.write();
            let heard = !self.unheard || self.random.random_ratio(3, 4);
            steps.push(Step::Write {
                history: number,
                write,
                heard,
            });
        }
        steps
    }

    fn write(&mut self) -> Write {
        if self.born.is_empty() {
            return self.birth();
        }
        let run = self.run();
        match self.random.random_range(0..100) {
            0..12 => self.birth(),
            12..38 => Write::Heartbeat {
                run,
                beat: self.beat(),
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
                self.born.retain(|other| *other != run);
                Write::Remove { run }
            }
            _ if self.unheard => Write::Edit {
                run,
                status: pick(self.random, &Status::ALL),
            },
            _ => Write::Tag { run },
        }
    }

    /// One that is there, or, at sites where the walk is quick to mend what follows, now and then
    /// one that is not yet.
    fn run(&mut self) -> i32 {
        if self.unheard && self.random.random_ratio(1, 12) {
            return self.random.random_range(1..=self.runs);
        }
        pick(self.random, &self.born)
    }

    fn birth(&mut self) -> Write {
        let run = self.random.random_range(1..=self.runs);
        if !self.born.contains(&run) {
            self.born.push(run);
        }
        Write::Run {
            run,
            beat: self.beat(),
        }
    }

    /// Around the clock and around both edges of the cutoff, so close that time passes them soon;
    /// but not where a walk must mend, which leaves alone what is close to an edge.
    fn beat(&mut self) -> Beat {
        let off = match self.random.random_range(0..100) {
            0..40 => -self.random.random_range(0..3),
            40..50 => -1_000,
            50..58 => return Beat::None,
            58..66 => self.cutoff / 2,
            66..78 if !self.unheard => -self.cutoff + self.random.random_range(0..2),
            78..88 if !self.unheard => self.cutoff + self.random.random_range(1..3),
            66..92 => 1_000_000,
            92..96 => -60,
            _ => return Beat::At(pick(self.random, &[i64::MIN, i64::MAX, 0, -1])),
        };
        Beat::Off(off)
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

#[test]
fn a_round_is_the_same_for_the_same_seed() {
    for seed in 0..200 {
        let round = Round::new(seed, Menu::All);
        assert_eq!(round.steps, Round::new(seed, Menu::All).steps);
        assert_ne!(round.steps, Round::new(seed + 1, Menu::All).steps);
    }
}
