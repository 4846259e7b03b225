//! `status_indexer.compare` against the oracle.

use std::collections::BTreeMap;

use serde_json::Value as Json;
use testkit::oracle::Status;
use tokio_postgres::Client;

use super::cases::{Key, RUNS};
use super::{ExpectedRuns, json_of, key_of, stored};

/// A scan of all runs by `compare`; returns the runs that differ, by their keys.
pub(super) async fn scan(client: &Client, step: i32, all: &ExpectedRuns) -> BTreeMap<Key, Json> {
    let mut differing = BTreeMap::new();
    let (mut completed, mut failed) = (0, 0);
    let (mut flow, mut run) = (String::new(), i64::MIN);
    let mut compared = 0;
    loop {
        let row = client
            .query_one(
                "select * from status_indexer.compare($1, $2, $3)",
                &[&flow, &run, &step],
            )
            .await
            .expect("compare accepts any evidence");
        compared += row.get::<_, i32>("compared");
        completed += row.get::<_, i32>("completed");
        failed += row.get::<_, i32>("failed");
        let drift = json_of::<Vec<Json>>(&row, "drift");
        let flows: Option<Vec<String>> = row.get("flow_ids");
        let runs: Option<Vec<i64>> = row.get("run_numbers");
        let keys = flows.into_iter().flatten().zip(runs.into_iter().flatten());
        let keys: Vec<Key> = keys.collect();
        assert!(
            keys.iter().cloned().eq(drift.iter().map(key_of)),
            "the keys are those of the reasons"
        );
        check_keys_alone(client, (&flow, run, step), &keys).await;
        for drift in drift {
            differing.insert(key_of(&drift), drift);
        }
        let Some(last) = row.get::<_, Option<String>>("last_flow_id") else {
            assert_eq!(usize::try_from(compared), Ok(RUNS), "every run once");
            for (count, status) in [(completed, Status::Completed), (failed, Status::Failed)] {
                let wanted = all.values().filter(|(v, _)| v.status == status);
                assert_eq!(usize::try_from(count), Ok(wanted.count()), "{status}");
            }
            return differing;
        };
        flow = last;
        run = row.get("last_run_number");
    }
}

/// The same call without reasons, which reads less, finds the same runs.
async fn check_keys_alone(client: &Client, (flow, run, step): (&str, i64, i32), keys: &[Key]) {
    let row = client
        .query_one(
            "select coalesce(flow_ids, '{}'), coalesce(run_numbers, '{}'), completed, failed, drift
               from status_indexer.compare($1, $2, $3, false)",
            &[&flow, &run, &step],
        )
        .await
        .expect("compare accepts any evidence");
    let (flows, runs): (Vec<String>, Vec<i64>) = (row.get(0), row.get(1));
    let found: Vec<Key> = flows.into_iter().zip(runs).collect();
    assert_eq!(found, keys);
    assert_eq!(row.get::<_, Option<i32>>("completed"), None);
    assert_eq!(row.get::<_, Option<i32>>("failed"), None);
    assert_eq!(row.get::<_, Option<Json>>("drift"), None);
}

pub(super) async fn check_compare(client: &Client, all: &ExpectedRuns) {
    let stored = stored(client).await;
    let differing = scan(client, 701, all).await;
    for (key, (expected, evidence)) in all {
        let differs = stored[key] != expected.status.as_str();
        let found = differing.get(key);
        assert_eq!(
            found.is_some(),
            differs,
            "{key:?}: {expected:?} {evidence:?}"
        );
        if let Some(found) = found {
            assert_eq!(found["stored"], stored[key], "{key:?}");
            assert_eq!(
                found["expected"],
                expected.status.as_str(),
                "{key:?} {evidence:?}"
            );
            assert_eq!(
                found["reason"],
                expected.reason.as_str(),
                "{key:?} {evidence:?}"
            );
        }
    }
    assert!(differing.keys().all(|key| all.contains_key(key)));
}
