//! The definition in SQL against the oracle, on thousands of generated cases.
//!
//! Promises that `apply`, `compare` and `explain` agree with the oracle on every case, and that
//! each run of the tests meets every rule of the definition often. A failure prints the seed.

mod apply;
mod booleans;
mod cases;
mod compare;
mod edges;
mod explain;
mod plans;

use std::collections::BTreeMap;

use self::apply::{check_apply, check_timers};
use self::cases::{
    CUTOFF, Case, Key, cases, insert_metadata, insert_runs, orphans, store_random_statuses,
};
use self::compare::{check_compare, scan};
use self::explain::check_explain;
use rand::rngs::StdRng;
use serde_json::{Value as Json, json};
use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::oracle::{Evidence, Expected, MICROS, Reason, Row};
use testkit::seed::Seed;
use tokio_postgres::Client;

type ExpectedRuns = BTreeMap<(String, i64), (Expected, Evidence)>;

fn seeded() -> StdRng {
    let seed = Seed::from_env();
    // Shown where the test fails.
    println!("{seed}");
    seed.generator(0)
}

async fn migrated(database: &Database) -> Client {
    Launch::on(database).args(&["migrate"]).succeed().await;
    database.client().await
}

async fn stored(client: &Client) -> BTreeMap<(String, i64), String> {
    client
        .query(
            "select flow_id::text, run_number::bigint, run_status from runs_v3",
            &[],
        )
        .await
        .expect("the column can be read")
        .iter()
        .map(|row| ((row.get(0), row.get(1)), row.get(2)))
        .collect()
}

fn json_of<T: serde::de::DeserializeOwned>(row: &tokio_postgres::Row, column: &str) -> T {
    let json: Option<Json> = row.get(column);
    serde_json::from_value(json.unwrap_or_else(|| json!([]))).expect("of the documented form")
}

fn key_of(json: &Json) -> Key {
    (
        json["flow_id"].as_str().expect("a flow's name").to_owned(),
        json["run_number"].as_i64().expect("a run's number"),
    )
}

fn check_every_rule_occurs(all: &ExpectedRuns) {
    for reason in [
        Reason::Retrying,
        Reason::EndSucceeded,
        Reason::EndFailed,
        Reason::Heartbeat,
        Reason::HeartbeatLost,
        Reason::NoHeartbeat,
    ] {
        let with = |wanted: &dyn Fn(&Evidence) -> bool| {
            all.values()
                .filter(|(expected, evidence)| expected.reason == reason && wanted(evidence))
                .count()
        };
        assert!(with(&|_| true) >= 30, "{reason} occurs too rarely");
        if matches!(
            reason,
            Reason::Heartbeat | Reason::HeartbeatLost | Reason::NoHeartbeat
        ) {
            assert!(
                with(&Evidence::is_malformed) >= 5,
                "{reason} with malformed evidence"
            );
        }
    }
    let tied = all.values().filter(|(_, evidence)| {
        let newest = evidence.newest("attempt_ok");
        newest.is_some_and(|newest| {
            evidence.rows.iter().any(|row| {
                row.field_name == "attempt_ok"
                    && row.step_name == "end"
                    && row.ts_ms == newest.ts_ms
                    && row.id != newest.id
                    && row.value != newest.value
            })
        })
    });
    assert!(tied.count() >= 30, "ties occur too rarely");
}

async fn compare_with_the_oracle(jsonb: bool) {
    let mut rng = seeded();
    let database = Database::fresh().await;
    if jsonb {
        let alter = "alter table metadata_v3 alter column value type jsonb using to_jsonb(value)";
        let client = database.client().await;
        client
            .batch_execute(alter)
            .await
            .expect("the table is empty");
    }
    let client = migrated(&database).await;
    let now_secs = database.writer().await.now_secs().await;
    let cases = cases(&mut rng, now_secs, jsonb);
    let orphans = orphans(&mut rng, &cases, jsonb);
    insert_runs(&client, &cases).await;
    let key = |case: &Case| (case.flow_id.to_owned(), i64::from(case.run_number));
    let mut rows: Vec<(Key, &Row)> = Vec::new();
    for case in &cases {
        rows.extend(case.evidence.rows.iter().map(|row| (key(case), row)));
    }
    rows.extend(orphans.iter().map(|(key, row)| (key.clone(), row)));
    insert_metadata(&client, &rows, jsonb).await;
    // Without statistics the plans are bad, and slow here.
    client
        .batch_execute("analyze")
        .await
        .expect("the tables are ours");

    let all: ExpectedRuns = cases
        .iter()
        .map(|case| {
            let expected = case
                .evidence
                .evaluate(i128::from(now_secs) * MICROS, CUTOFF);
            (key(case), (expected, case.evidence.clone()))
        })
        .collect();
    check_every_rule_occurs(&all);
    let orphans: Vec<Key> = orphans.into_iter().map(|(key, _)| key).collect();

    store_random_statuses(&client).await;
    check_compare(&client, &all).await;
    // The same where runs seem to have many metadata rows, so that each is looked up by itself.
    client
        .batch_execute("update pg_class set reltuples = 1e9 where relname = 'metadata_v3'")
        .await
        .expect("the superuser may");
    check_compare(&client, &all).await;
    client
        .batch_execute("analyze")
        .await
        .expect("the tables are ours");
    check_explain(&client, &all, now_secs).await;
    check_apply(&client, &all, &orphans, &mut rng).await;
    check_timers(&client, &all, now_secs).await;
    assert!(
        scan(&client, 2_000, &all).await.is_empty(),
        "nothing differs any more"
    );
    check_explain(&client, &all, now_secs).await;
    // A right status is not written again.
    check_apply(&client, &all, &orphans, &mut rng).await;
}

#[tokio::test]
async fn the_sql_agrees_with_the_oracle_on_a_text_column() {
    compare_with_the_oracle(false).await;
}

#[tokio::test]
async fn the_sql_agrees_with_the_oracle_on_a_jsonb_column() {
    compare_with_the_oracle(true).await;
}
