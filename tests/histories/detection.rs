//! What the random histories must detect: a trigger is dropped, and a round has to fail.
//!
//! All but the last test run where only events change a status, one event at a time, with
//! heartbeats far from the cutoff. The status of a run whose event is missing is then incorrect as
//! soon as the queue is empty, and stays so: whether a list of steps fails depends on the steps,
//! not on the speed of the machine.

use std::time::Duration;

use testkit::history::campaign::fewest;
use testkit::history::environment::{Environment, Server};
use testkit::history::failure::Failure;
use testkit::history::generate::{Faults, Round};
use testkit::history::run::run_steps;
use testkit::history::step::{Heartbeat, Step, Write};
use testkit::seed::Seed;

/// How long events may take on a busy machine; on an idle one they take milliseconds.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Enough rounds to miss any trigger; for most, one in four does.
const FOUND_WITHIN: usize = 80;

/// The cutoff that these rounds are generated for, seconds.
const GENERATED_CUTOFF: i64 = 360;

/// A longer cutoff, so that heartbeats around the generated one are minutes away from it.
const CUTOFF: i64 = 500;

/// Rounds without faults.
fn plain_rounds(seed: &Seed) -> impl Iterator<Item = Round> {
    (seed.number()..)
        .map(|seed| Round::new(seed, Faults::None))
        .filter(|round| round.cutoff == GENERATED_CUTOFF)
}

/// The same without heartbeats that move a run out of range: no trigger reports these, the sweeper
/// finds them.
fn event_rounds(seed: &Seed) -> impl Iterator<Item = Round> {
    plain_rounds(seed).map(|mut round| {
        round.steps.retain(|step| match step {
            Step::Write {
                write: Write::Heartbeat { heartbeat, .. },
                ..
            } => is_in_range(*heartbeat),
            _ => true,
        });
        round
    })
}

fn is_in_range(heartbeat: Heartbeat) -> bool {
    matches!(heartbeat, Heartbeat::FromNow(secs) if secs.abs() < CUTOFF)
}

async fn drop_trigger(environment: &Environment, table: &str, trigger: &str) {
    let statement = format!("drop trigger status_indexer_{trigger} on {table}");
    let dropped = environment.client().batch_execute(&statement).await;
    dropped.expect("the trigger is installed");
}

/// Why steps fail, in histories whose every write fires its trigger by design: evidence that is
/// older than its run does not.
async fn failure(environment: &mut Environment, steps: &[Step]) -> Option<Failure> {
    let first = environment.histories.len();
    let mut failure = run_steps(environment, steps, TIMEOUT).await.err()?;
    failure.histories.retain(|number| {
        !environment.histories[first + number]
            .model
            .bypasses_triggers
    });
    let blamed = !failure.histories.is_empty();
    // Otherwise the incorrect statuses would fail every later round.
    environment.forget().await;
    blamed.then_some(failure)
}

/// Runs rounds without a trigger until one fails.
async fn failing_without(seed: &Seed, table: &str, trigger: &str) -> (Environment, Round, Failure) {
    let server = Server::shared().await;
    let mut environment = Environment::open_events_only(&server, CUTOFF).await;
    let mut rounds = event_rounds(seed);
    let round = rounds.next().expect("rounds do not end");
    let complete = failure(&mut environment, &round.steps).await;
    assert!(complete.is_none(), "{complete:?}");
    drop_trigger(&environment, table, trigger).await;
    for (number, round) in rounds.take(FOUND_WITHIN).enumerate() {
        if let Some(failure) = failure(&mut environment, &round.steps).await {
            println!("found without {trigger} on {table} in round {}", number + 1);
            return (environment, round, failure);
        }
    }
    panic!("{FOUND_WITHIN} rounds without {trigger} on {table} passed");
}

/// The fewest steps of such a round that fail.
async fn fewest_without(table: &str, trigger: &str) -> Vec<Step> {
    let seed = Seed::from_env();
    let (mut environment, round, mut last) = failing_without(&seed, table, trigger).await;
    let steps = fewest(&round, &mut last, async |steps| {
        failure(&mut environment, steps).await
    });
    let steps = steps.await.expect("equal steps fail again");
    steps.iter().for_each(|step| println!("{step}"));
    assert!(last.text.contains("1 of "), "{}", last.text);
    environment.close().await;
    steps
}

fn has(steps: &[Step], wanted: impl Fn(&Write) -> bool) -> bool {
    steps
        .iter()
        .any(|step| matches!(step, Step::Write { write, .. } if wanted(write)))
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_events_of_evidence_are_found_in_few_steps() {
    let steps = fewest_without("metadata_v3", "insert").await;
    assert!((2..=4).contains(&steps.len()), "{steps:?}");
    assert!(has(&steps, |write| matches!(write, Write::Run { .. })));
    assert!(has(&steps, |write| matches!(write, Write::Evidence { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_events_of_heartbeats_are_found_in_few_steps() {
    let steps = fewest_without("runs_v3", "heartbeat").await;
    assert!((2..=5).contains(&steps.len()), "{steps:?}");
    assert!(has(&steps, |write| matches!(write, Write::Run { .. })));
    assert!(has(&steps, |write| matches!(
        write,
        Write::Heartbeat { .. }
    )));
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_events_of_every_other_trigger_are_found() {
    let seed = Seed::from_env();
    for (table, trigger) in [
        ("runs_v3", "insert"),
        ("metadata_v3", "update"),
        ("metadata_v3", "delete"),
    ] {
        let (environment, ..) = failing_without(&seed, table, trigger).await;
        environment.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_that_only_the_reconciler_corrected_are_reported_as_drift() {
    let seed = Seed::from_env();
    let server = Server::shared().await;
    let mut environment = Environment::open(&server, GENERATED_CUTOFF).await;
    // Every event is lost, although all triggers exist and fire.
    environment
        .client()
        .batch_execute(
            "alter table status_indexer.queue add constraint lost check (false) not valid",
        )
        .await
        .expect("the queue is installed");
    let round = plain_rounds(&seed).next().expect("rounds do not end");
    let outcome = run_steps(&mut environment, &round.steps, TIMEOUT).await;
    let failure = outcome.expect_err("events are lost");
    assert!(failure.text.starts_with("drift"), "{}", failure.text);
    environment.close().await;
}
