//! `status_indexer.apply` against the oracle: what it writes, reports and schedules.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::Value as Json;
use testkit::oracle::Reason;
use tokio_postgres::Client;

use super::cases::{CUTOFF, Key, RUNS};
use super::{ExpectedRuns, json_of, key_of, stored};

/// Applies all keys, also those of orphans, in batches as the daemon does.
pub(super) async fn check_apply(
    client: &Client,
    all: &ExpectedRuns,
    orphans: &[Key],
    rng: &mut StdRng,
) {
    let before = stored(client).await;
    let mut keys: Vec<&Key> = all.keys().chain(orphans).collect();
    // In any order, and some twice.
    for at in 0..keys.len() {
        let other = rng.random_range(0..keys.len());
        keys.swap(at, other);
    }
    let mut changes = BTreeMap::new();
    let mut malformed = BTreeSet::new();
    let mut applied = 0;
    for batch in keys.chunks(97) {
        let mut batch = batch.to_vec();
        batch.push(batch[0]);
        let flows: Vec<&str> = batch.iter().map(|(flow, _)| flow.as_str()).collect();
        let runs: Vec<i64> = batch.iter().map(|(_, run)| *run).collect();
        let row = client
            .query_one(
                "select * from status_indexer.apply($1, $2, null)",
                &[&flows, &runs],
            )
            .await
            .expect("apply accepts any evidence");
        applied += row.get::<_, i32>("applied");
        assert_eq!(json_of::<Vec<Json>>(&row, "skipped"), Vec::<Json>::new());
        for change in json_of::<Vec<Json>>(&row, "changes") {
            assert!(
                changes.insert(key_of(&change), change).is_none(),
                "one change per run"
            );
        }
        malformed.extend(json_of::<Vec<Json>>(&row, "invalid").iter().map(key_of));
    }
    assert_eq!(usize::try_from(applied), Ok(RUNS));
    let after = stored(client).await;
    for (key, (expected, evidence)) in all {
        let context = format!("{key:?}: {expected:?} {evidence:?}");
        assert_eq!(after[key], expected.status.as_str(), "{context}");
        let change = changes.get(key);
        assert_eq!(change.is_some(), before[key] != after[key], "{context}");
        if let Some(change) = change {
            assert_eq!(change["from"], before[key], "{context}");
            assert_eq!(change["to"], after[key], "{context}");
            assert_eq!(change["reason"], expected.reason.as_str(), "{context}");
        }
        assert_eq!(
            malformed.contains(key),
            evidence.is_malformed(),
            "{context}"
        );
    }
    assert!(changes.keys().all(|key| all.contains_key(key)));
}

/// Heartbeats ahead of the clock by more than the cutoff, and no others, have a timer.
pub(super) async fn check_timers(client: &Client, all: &ExpectedRuns, now_secs: i64) {
    let timers: BTreeMap<Key, i64> = client
        .query(
            "select flow_id, run_number, due_secs from status_indexer.timers",
            &[],
        )
        .await
        .expect("timers can be read")
        .iter()
        .map(|row| ((row.get(0), row.get(1)), row.get(2)))
        .collect();
    let ahead: BTreeMap<Key, i64> = all
        .iter()
        .filter(|(_, (expected, _))| expected.reason == Reason::HeartbeatLost)
        .filter_map(|(key, (_, evidence))| Some((key.clone(), evidence.heartbeat_secs?)))
        .filter(|(_, heartbeat)| *heartbeat > now_secs)
        .map(|(key, heartbeat)| (key, heartbeat - CUTOFF))
        .collect();
    assert!(!ahead.is_empty());
    assert_eq!(timers, ahead);
}
