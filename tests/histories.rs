//! Whatever happens to runs and to those who keep their statuses: in the end every status is right.
//!
//! Promises that for hundreds of random histories, of writes of every kind with faults of every kind
//! in between, the stored statuses are the model's verdicts; and that such a test can fail, and then
//! says so in few steps.

use std::time::Duration;

use crate::history::campaign::{Campaign, fewest};
use crate::history::generate::{Menu, Round};
use crate::history::play::{Failure, Tally, play};
use crate::history::shrink::shrink;
use crate::history::site::{Server, Site};
use crate::history::step::Step;
use crate::support::verdict::Seed;

/// How long a site that is broken may take to mend itself, which it cannot; a whole one takes
/// milliseconds.
const SHORT_PATIENCE: Duration = Duration::from_secs(3);

/// Rounds in which any trigger is missed for certain; one in four is enough for most.
const FOUND_WITHIN: usize = 80;

const LONG_CUTOFF: i64 = 360;

async fn play_rounds(menu: Menu, rounds: usize) -> Tally {
    let seed = Seed::new();
    println!("{seed}");
    let mut campaign = Campaign::new(seed.number(), menu).await;
    let mut tally = Tally::default();
    for _ in 0..rounds {
        match campaign.round().await {
            Ok(round) => tally.add(round),
            Err(text) => panic!("{text}"),
        }
    }
    campaign.end().await;
    println!("{tally:?}");
    tally
}

#[tokio::test(flavor = "multi_thread")]
async fn every_history_ends_in_the_statuses_of_the_definition() {
    let tally = play_rounds(Menu::Cheap, 32).await;
    // Else little would show that it is the pipeline which makes them right.
    assert!(tally.heard > tally.histories / 3, "{tally:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_end_right_too_where_the_server_and_the_network_fail() {
    play_rounds(Menu::All, 8).await;
}

/// Rounds that a whole site plays right.
fn plain_rounds(seed: &Seed) -> impl Iterator<Item = Round> {
    (seed.number()..)
        .map(|seed| Round::new(seed, Menu::Plain))
        .filter(|round| round.cutoff == LONG_CUTOFF)
}

async fn without_trigger(site: &Site, table: &str, trigger: &str) {
    let statement = format!("drop trigger status_indexer_{trigger} on {table}");
    let dropped = site.client().batch_execute(&statement).await;
    dropped.expect("the trigger is installed");
}

/// Why a round failed that nobody's walk helped, in histories of which triggers are told everything:
/// of evidence from before its run they are not.
async fn heard(site: &mut Site, steps: &[Step], patience: Duration) -> Option<Failure> {
    let first = site.histories.len();
    let mut failure = play(site, steps, patience).await.err()?;
    failure
        .histories
        .retain(|number| !site.histories[first + number].ledger.unheard);
    let blamed = !failure.histories.is_empty();
    // What nobody mends would be wrong for ever.
    site.forget().await;
    blamed.then_some(failure)
}

/// Plays rounds without a trigger and without a walk over all runs, until one fails.
async fn failing_without(seed: &Seed, table: &str, trigger: &str) -> (Site, Round, Failure) {
    let server = Server::shared().await;
    let once = vec![("STATUS_INDEXER_RECONCILE_INTERVAL", "86400")];
    let mut site = Site::open_with(&server, LONG_CUTOFF, once).await;
    let mut rounds = plain_rounds(seed);
    let round = rounds.next().expect("they do not end");
    let whole = heard(&mut site, &round.steps, SHORT_PATIENCE * 4).await;
    assert!(whole.is_none(), "{whole:?}");
    without_trigger(&site, table, trigger).await;
    for (number, round) in rounds.take(FOUND_WITHIN).enumerate() {
        if let Some(failure) = heard(&mut site, &round.steps, SHORT_PATIENCE).await {
            println!("found without {trigger} on {table} in round {}", number + 1);
            return (site, round, failure);
        }
    }
    panic!("{FOUND_WITHIN} rounds without {trigger} on {table} were right");
}

/// What is left of such a round.
async fn fewest_without(table: &str, trigger: &str) -> Vec<Step> {
    let seed = Seed::new();
    let (mut site, round, mut failure) = failing_without(&seed, table, trigger).await;
    let steps = fewest(&round, &mut failure, async |steps| {
        heard(&mut site, steps, SHORT_PATIENCE).await
    });
    let steps = steps.await.expect("it fails again");
    steps.iter().for_each(|step| println!("{step}"));
    assert!(failure.text.contains("1 of "), "{}", failure.text);
    site.close().await;
    steps
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_that_no_trigger_tells_of_is_found_in_few_steps() {
    let steps = fewest_without("metadata_v3", "insert").await;
    assert!((2..=4).contains(&steps.len()), "{steps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_that_no_trigger_tells_of_are_found_in_few_steps() {
    let steps = fewest_without("runs_v3", "heartbeat").await;
    assert!((2..=5).contains(&steps.len()), "{steps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn that_any_other_trigger_is_missing_is_found_too() {
    let seed = Seed::new();
    for (table, trigger) in [
        ("runs_v3", "insert"),
        ("metadata_v3", "update"),
        ("metadata_v3", "delete"),
    ] {
        let (site, ..) = failing_without(&seed, table, trigger).await;
        site.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_that_the_walk_had_to_mend_are_found() {
    let seed = Seed::new();
    let server = Server::shared().await;
    let mut site = Site::open(&server, LONG_CUTOFF).await;
    without_trigger(&site, "metadata_v3", "insert").await;
    let round = plain_rounds(&seed).next().expect("they do not end");
    let outcome = play(&mut site, &round.steps, SHORT_PATIENCE * 10).await;
    let failure = outcome.expect_err("a trigger is missing");
    assert!(failure.text.starts_with("drift"), "{}", failure.text);
    site.close().await;
}

async fn shrunk(whole: &[u32], fails: impl Fn(&[u32]) -> bool) -> Vec<u32> {
    shrink(whole.to_vec(), 10_000, async |part| fails(part)).await
}

#[tokio::test]
async fn a_list_that_fails_shrinks_to_what_must_be_in_it() {
    let whole: Vec<u32> = (0..100).collect();
    assert_eq!(shrunk(&whole, |part| part.contains(&71)).await, [71]);
    let three = |part: &[u32]| [3, 50, 99].iter().all(|one| part.contains(one));
    assert_eq!(shrunk(&whole, three).await, [3, 50, 99]);
    // What is superfluous only once something after it is gone.
    let nested = |part: &[u32]| part.contains(&1) && (part.contains(&7) || !part.contains(&8));
    assert_eq!(shrunk(&whole, nested).await, [1]);
    assert_eq!(shrunk(&whole, |part| part.len() >= 10).await.len(), 10);
    assert_eq!(shrunk(&whole, |_| true).await, [0; 0]);
    assert_eq!(shrunk(&whole, |_| false).await, whole);
}

#[tokio::test]
async fn a_list_is_shrunk_in_no_more_trials_than_allowed() {
    for allowed in [0, 1, 7, 40] {
        let mut trials = 0;
        let whole: Vec<u32> = (0..1000).collect();
        let fails = async |part: &[u32]| {
            trials += 1;
            part.contains(&321) && part.contains(&789)
        };
        let left = shrink(whole, allowed, fails).await;
        assert_eq!(trials, allowed);
        assert!(left.contains(&321) && left.contains(&789));
    }
}
