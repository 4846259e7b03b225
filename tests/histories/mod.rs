//! Random histories of writes and faults: in the end every status is the one that the oracle
//! expects.
//!
//! Promises that for hundreds of random histories, of writes of every kind with faults of every
//! kind in between, the stored statuses are right; and that such a test can fail, and then reports
//! few steps. The histories themselves are [`testkit::history`].

mod detection;
mod shrink;

use testkit::history::campaign::Campaign;
use testkit::history::generate::Faults;
use testkit::history::run::Totals;
use testkit::seed::Seed;

async fn run_rounds(faults: Faults, rounds: usize) -> Totals {
    let seed = Seed::from_env();
    println!("{seed}");
    let mut campaign = Campaign::new(seed.number(), faults).await;
    let mut totals = Totals::default();
    for _ in 0..rounds {
        match campaign.round().await {
            Ok(round) => totals.add(round),
            Err(text) => panic!("{text}"),
        }
    }
    campaign.end().await;
    println!("{totals:?}");
    totals
}

#[tokio::test(flavor = "multi_thread")]
async fn every_history_ends_with_the_expected_statuses() {
    let totals = run_rounds(Faults::Quick, 32).await;
    // Without these, the reconciler might have written every status.
    assert!(totals.with_triggers > totals.histories / 3, "{totals:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_end_with_the_expected_statuses_when_servers_and_networks_fail() {
    run_rounds(Faults::All, 8).await;
}
