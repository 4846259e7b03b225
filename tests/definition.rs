//! The definition in SQL against the independent model, on thousands of generated cases.
//!
//! Promises that `apply`, `compare` and `explain` agree with the model on every case of a run, and
//! that each run meets every rule of the definition often. A failure tells the seed; the same cases
//! come again with `DEFINITION_SEED=that`.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use serde_json::{Value as Json, json};
use status_indexer::status::{Reason, Status};
use tokio_postgres::Client;

use crate::model::{Evidence, MICROS, Row, Value, Verdict, read_boolean};
use crate::support::daemon::Launch;
use crate::support::database::Database;

/// Runs of one database.
const RUNS: usize = 2_500;

/// Upstream's default, which `migrate` installs unless told otherwise.
const CUTOFF: i64 = 360;

/// Flows' names that have to be looked up as they are.
const FLOWS: [&str; 5] = ["Flow", "flow", "Fl'o\"w", "流れ $1 %s {{runs}}", ""];

/// A run with all that is known of it.
struct Case {
    flow_id: &'static str,
    run_number: i32,
    evidence: Evidence,
}

/// Whose evidence it is: a run's key as the metadata has it.
type Key = (String, i64);

fn seeded() -> (u64, StdRng) {
    let seed = std::env::var("DEFINITION_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(rand::random);
    // Shown where the test fails.
    println!("repeat with DEFINITION_SEED={seed}");
    (seed, StdRng::seed_from_u64(seed))
}

fn pick<'a, T>(rng: &mut StdRng, from: &'a [T]) -> &'a T {
    &from[rng.random_range(0..from.len())]
}

async fn migrated(database: &Database) -> Client {
    let output = Launch::on(database).args(&["migrate"]).output().await;
    assert!(output.status.success(), "{output:?}");
    database.client().await
}

// --- generated texts

/// Texts around every spelling of a boolean: the spellings, in any case, with white space, cut,
/// lengthened, quoted, and things that only look alike.
fn boolean_like(rng: &mut StdRng) -> String {
    const WORDS: [&str; 22] = [
        "t", "tr", "tru", "true", "y", "ye", "yes", "on", "1", "f", "fa", "fal", "fals", "false",
        "n", "no", "of", "off", "0", "True", "False", "o",
    ];
    const NONE: [&str; 16] = [
        "",
        "null",
        "None",
        "2",
        "-1",
        "00",
        "01",
        "yess",
        "truefalse",
        "+1",
        "1.0",
        "\"True\"",
        "'t'",
        "ｔｒｕｅ",
        "ñ",
        "t\u{301}",
    ];
    const BLANKS: [&str; 9] = [
        " ", "\t", "\n", "\x0b", "\x0c", "\r", "\u{a0}", "\u{2003}", "\u{feff}",
    ];
    if rng.random_ratio(1, 6) {
        return (*pick(rng, &NONE)).to_owned();
    }
    let mut text = (*pick(rng, &WORDS)).to_owned();
    if rng.random_ratio(1, 3) {
        text = text
            .chars()
            .map(|c| {
                if rng.random() {
                    c.to_ascii_uppercase()
                } else {
                    c
                }
            })
            .collect();
    }
    let blanks = |rng: &mut StdRng| -> String {
        let (count, kinds) = (rng.random_range(0..3), rng.random_range(6..=BLANKS.len()));
        (0..count).map(|_| *pick(rng, &BLANKS[..kinds])).collect()
    };
    match rng.random_range(0..12) {
        0 => format!("{}{text}{}", blanks(rng), blanks(rng)),
        1 => format!("{text}{}", blanks(rng)),
        2 => {
            let at = rng.random_range(0..=text.len());
            format!("{}{}{}", &text[..at], pick(rng, &BLANKS), &text[at..])
        }
        3 => blanks(rng),
        _ => text,
    }
}

fn value(rng: &mut StdRng, jsonb: bool) -> Value {
    let plain = match rng.random_range(0..10) {
        0..=3 => "True".to_owned(),
        4..=7 => "False".to_owned(),
        _ => boolean_like(rng),
    };
    if !jsonb {
        return Value::Text(plain);
    }
    let text = Json::String(plain);
    Value::Json(match rng.random_range(0..24) {
        0 => Json::Bool(true),
        1 => Json::Bool(false),
        2 => json!(1),
        3 => json!(0),
        4 => json!(2),
        5 => Json::Null,
        6 => json!({}),
        7 => json!([]),
        8 => json!([text, "True"]),
        9 => json!([Json::Null, "True"]),
        10 => json!([["True"]]),
        11 => json!([true]),
        12 => json!({ "0": "True" }),
        13 => json!([{ "True": 1 }]),
        _ => text,
    })
}

// --- generated runs

/// Heartbeats well away from the edges of the cutoff, because the real clock goes on.
fn heartbeat(rng: &mut StdRng, now_secs: i64) -> Option<i64> {
    match rng.random_range(0..14) {
        0..=2 => None,
        3..=6 => Some(now_secs + rng.random_range(-200..=200)),
        7..=8 => Some(now_secs - rng.random_range(600..1_000_000)),
        9..=10 => Some(now_secs + rng.random_range(600..1_000_000)),
        // Five hours off: a replica on a host that is not on UTC.
        11 => Some(now_secs + pick(rng, &[-5, 5]) * 3_600),
        12 => Some(*pick(
            rng,
            &[i64::MIN, i64::MIN + 1, i64::MAX - CUTOFF, i64::MAX],
        )),
        _ => Some(*pick(rng, &[-1, 0, 1, 253_402_300_800])),
    }
}

fn rows(rng: &mut StdRng, ids: &mut i64, now_ms: i64, jsonb: bool) -> Vec<Row> {
    let count = *pick(rng, &[0, 0, 1, 1, 2, 2, 3, 4, 6, 9]);
    // Few different times, so that there are ties.
    let base = *pick(rng, &[now_ms, now_ms, now_ms, 0, i64::MIN, i64::MAX - 3]);
    let mut rows: Vec<Row> = Vec::new();
    for _ in 0..count {
        *ids += rng.random_range(1..3);
        if rng.random_ratio(1, 8)
            && let Some(copy) = rows.last().cloned()
        {
            // A client that tries again.
            rows.push(Row { id: *ids, ..copy });
            continue;
        }
        let step = match rng.random_range(0..8) {
            0 => *pick(rng, &["start", "End", "end ", "the_end", "e"]),
            _ => "end",
        };
        let field = match rng.random_range(0..16) {
            0..=7 => "attempt_ok",
            8..=13 => "attempt",
            14 => "attempt-done",
            _ => *pick(
                rng,
                &["Attempt_ok", "attempt_ok ", "attempts", "attemptXok"],
            ),
        };
        let counts_attempts = field == "attempt" && !jsonb;
        rows.push(Row {
            id: *ids,
            step_name: step.to_owned(),
            task_id: *pick(rng, &[0, 1, 2, 7, i64::MAX]),
            field_name: field.to_owned(),
            value: if counts_attempts {
                Value::Text("0".to_owned())
            } else {
                value(rng, jsonb)
            },
            ts_ms: base + rng.random_range(0..4),
        });
    }
    // The order of the ids is that of commits to the sequence, not that of time.
    if rng.random() && rows.len() > 1 {
        let (a, b) = (
            rng.random_range(0..rows.len()),
            rng.random_range(0..rows.len()),
        );
        let id = rows[a].id;
        rows[a].id = rows[b].id;
        rows[b].id = id;
    }
    rows
}

fn cases(rng: &mut StdRng, now_secs: i64, jsonb: bool) -> Vec<Case> {
    let mut numbers = BTreeSet::from([i32::MIN, -1, 0, i32::MAX]);
    while numbers.len() < RUNS {
        numbers.insert(rng.random_range(1..100_000));
    }
    let mut ids = 0;
    numbers
        .into_iter()
        .map(|run_number| Case {
            flow_id: FLOWS[rng.random_range(0..FLOWS.len())],
            run_number,
            evidence: Evidence {
                rows: rows(rng, &mut ids, now_secs * 1000, jsonb),
                heartbeat_secs: heartbeat(rng, now_secs),
            },
        })
        .collect()
}

/// Evidence without a run, next to the keys of runs that are there.
fn orphans(rng: &mut StdRng, cases: &[Case], jsonb: bool) -> Vec<(Key, Row)> {
    let mut orphans = Vec::new();
    for (id, case) in (1_i64 << 40..).zip(cases.iter().take(200)) {
        let run_number = match rng.random_range(0..3) {
            0 => i64::from(case.run_number) + (1 << 32),
            1 => 200_000 + rng.random_range(0..1_000),
            _ => *pick(rng, &[i64::MIN, i64::MAX]),
        };
        let row = Row {
            id,
            step_name: "end".to_owned(),
            task_id: 1,
            field_name: "attempt_ok".to_owned(),
            value: value(rng, jsonb),
            ts_ms: 1 << 50,
        };
        orphans.push(((case.flow_id.to_owned(), run_number), row));
    }
    orphans
}

// --- into the database

async fn insert_runs(client: &Client, cases: &[Case]) {
    const FLOWS_SQL: &str = "\
insert into flows_v3 (flow_id, ts_epoch) select f, 0 from unnest($1::text[]) f";
    const RUNS_SQL: &str = "\
insert into runs_v3 (flow_id, run_number, ts_epoch, last_heartbeat_ts)
select * from unnest($1::text[], $2::int[], array_fill(0::bigint, array[cardinality($2::int[])]), $3::bigint[])";
    let flows: Vec<&str> = FLOWS.to_vec();
    client
        .execute(FLOWS_SQL, &[&flows])
        .await
        .expect("flows can be written");
    let flow_ids: Vec<&str> = cases.iter().map(|case| case.flow_id).collect();
    let numbers: Vec<i32> = cases.iter().map(|case| case.run_number).collect();
    let heartbeats: Vec<Option<i64>> = cases
        .iter()
        .map(|case| case.evidence.heartbeat_secs)
        .collect();
    client
        .execute(RUNS_SQL, &[&flow_ids, &numbers, &heartbeats])
        .await
        .expect("runs can be written, whatever their heartbeat says");
}

async fn insert_metadata(client: &Client, rows: &[(Key, &Row)], jsonb: bool) {
    let kind = if jsonb { "::jsonb" } else { "" };
    let sql = format!(
        "insert into metadata_v3 (flow_id, run_number, id, step_name, task_id, field_name, value, type, ts_epoch)
         select f, r, i, s, t, n, v{kind}, 'x', e
           from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::text[],
                       $7::text[], $8::bigint[]) u (f, r, i, s, t, n, v, e)"
    );
    let flows: Vec<&str> = rows.iter().map(|((flow, _), _)| flow.as_str()).collect();
    let runs: Vec<i64> = rows.iter().map(|((_, run), _)| *run).collect();
    let ids: Vec<i64> = rows.iter().map(|(_, row)| row.id).collect();
    let steps: Vec<&str> = rows.iter().map(|(_, row)| row.step_name.as_str()).collect();
    let tasks: Vec<i64> = rows.iter().map(|(_, row)| row.task_id).collect();
    let fields: Vec<&str> = rows
        .iter()
        .map(|(_, row)| row.field_name.as_str())
        .collect();
    let values: Vec<String> = rows.iter().map(|(_, row)| row.value.to_string()).collect();
    let times: Vec<i64> = rows.iter().map(|(_, row)| row.ts_ms).collect();
    client
        .execute(
            &sql,
            &[
                &flows, &runs, &ids, &steps, &tasks, &fields, &values, &times,
            ],
        )
        .await
        .expect("metadata can be written, whatever stands in it");
}

/// Statuses that have nothing to do with the evidence, so that every case is decided anew.
async fn scramble(client: &Client) {
    client
        .batch_execute(
            "update runs_v3
                set run_status = (array['running', 'completed', 'failed'])[1 + (random() * 2.999)::int % 3]",
        )
        .await
        .expect("the column can be written");
}

// --- the comparison

type Expected = BTreeMap<(String, i64), (Verdict, Evidence)>;

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

/// A whole walk of `compare`; the runs that differ, by their keys.
async fn walk(client: &Client, step: i32, expected: &Expected) -> BTreeMap<Key, Json> {
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
            .expect("compare judges whatever is there");
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
                let wanted = expected.values().filter(|(v, _)| v.status == status);
                assert_eq!(usize::try_from(count), Ok(wanted.count()), "{status}");
            }
            return differing;
        };
        flow = last;
        run = row.get("last_run_number");
    }
}

/// The same step without reasons, which looks at less, finds the same runs.
async fn check_keys_alone(client: &Client, (flow, run, step): (&str, i64, i32), keys: &[Key]) {
    let row = client
        .query_one(
            "select coalesce(flow_ids, '{}'), coalesce(run_numbers, '{}'), completed, failed, drift
               from status_indexer.compare($1, $2, $3, false)",
            &[&flow, &run, &step],
        )
        .await
        .expect("compare judges whatever is there");
    let (flows, runs): (Vec<String>, Vec<i64>) = (row.get(0), row.get(1));
    let found: Vec<Key> = flows.into_iter().zip(runs).collect();
    assert_eq!(found, keys);
    assert_eq!(row.get::<_, Option<i32>>("completed"), None);
    assert_eq!(row.get::<_, Option<i32>>("failed"), None);
    assert_eq!(row.get::<_, Option<Json>>("drift"), None);
}

async fn check_compare(client: &Client, expected: &Expected) {
    let stored = stored(client).await;
    let differing = walk(client, 701, expected).await;
    for (key, (verdict, evidence)) in expected {
        let differs = stored[key] != verdict.status.as_str();
        let found = differing.get(key);
        assert_eq!(
            found.is_some(),
            differs,
            "{key:?}: {verdict:?} {evidence:?}"
        );
        if let Some(found) = found {
            assert_eq!(found["stored"], stored[key], "{key:?}");
            assert_eq!(
                found["expected"],
                verdict.status.as_str(),
                "{key:?} {evidence:?}"
            );
            assert_eq!(
                found["reason"],
                verdict.reason.as_str(),
                "{key:?} {evidence:?}"
            );
        }
    }
    assert!(differing.keys().all(|key| expected.contains_key(key)));
}

async fn check_explain(client: &Client, expected: &Expected, now_secs: i64) {
    let rows = client
        .query(
            "select flow_id::text, run_number::bigint, status_indexer.explain(flow_id, run_number::text) as why from runs_v3",
            &[],
        )
        .await
        .expect("explain explains whatever is there");
    assert_eq!(rows.len(), expected.len());
    for row in rows {
        let key = (row.get(0), row.get(1));
        let (verdict, evidence) = &expected[&key];
        let why: Json = row.get("why");
        let context = format!("{key:?}: {evidence:?}\n{why:#}");
        assert_eq!(why["status"], verdict.status.as_str(), "{context}");
        assert_eq!(why["reason"], verdict.reason.as_str(), "{context}");
        let finished = verdict.finished_at_ms.map(|ms| ms.to_string());
        let told = (!why["finished_at"].is_null()).then(|| why["finished_at"].to_string());
        // A number beyond 64 bits is a float to the reader of JSON.
        if verdict
            .finished_at_ms
            .is_none_or(|ms| i64::try_from(ms).is_ok())
        {
            assert_eq!(told, finished, "{context}");
        } else {
            assert!(told.is_some(), "{context}");
        }
        let agrees = why["stored"] == verdict.status.as_str();
        assert_eq!(why["agrees"], agrees, "{context}");
        let malformed = why["evidence"]["attempt_ok_is_boolean"] == json!(false);
        assert_eq!(malformed, evidence.is_malformed(), "{context}");
        check_next_change(&why, verdict, evidence, now_secs, &context);
        let counted = evidence.rows.iter().filter(|row| {
            row.step_name == "end" && ["attempt", "attempt_ok"].contains(&row.field_name.as_str())
        });
        let shown = why["evidence"]["rows"].as_array().expect("a list");
        assert_eq!(shown.len(), counted.count(), "{context}");
    }
}

fn check_next_change(why: &Json, verdict: &Verdict, evidence: &Evidence, now: i64, context: &str) {
    let heartbeat = evidence.heartbeat_secs.unwrap_or(0);
    let (at, status) = match verdict.reason {
        Reason::Heartbeat => (json!(heartbeat + CUTOFF), json!("failed")),
        Reason::HeartbeatLost if heartbeat > now => (json!(heartbeat - CUTOFF), json!("running")),
        _ => (Json::Null, Json::Null),
    };
    assert_eq!(why["next_change_secs"], at, "{context}");
    assert_eq!(why["next_status"], status, "{context}");
}

/// Applies all keys, those of orphans too, in batches as the daemon does.
async fn check_apply(client: &Client, expected: &Expected, orphans: &[Key], rng: &mut StdRng) {
    let before = stored(client).await;
    let mut keys: Vec<&Key> = expected.keys().chain(orphans).collect();
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
            .expect("apply decides whatever is there");
        applied += row.get::<_, i32>("applied");
        assert_eq!(json_of::<Vec<Json>>(&row, "skipped"), Vec::<Json>::new());
        for change in json_of::<Vec<Json>>(&row, "changes") {
            assert!(
                changes.insert(key_of(&change), change).is_none(),
                "one change a run"
            );
        }
        malformed.extend(json_of::<Vec<Json>>(&row, "invalid").iter().map(key_of));
    }
    assert_eq!(usize::try_from(applied), Ok(RUNS));
    let after = stored(client).await;
    for (key, (verdict, evidence)) in expected {
        let context = format!("{key:?}: {verdict:?} {evidence:?}");
        assert_eq!(after[key], verdict.status.as_str(), "{context}");
        let change = changes.get(key);
        assert_eq!(change.is_some(), before[key] != after[key], "{context}");
        if let Some(change) = change {
            assert_eq!(change["from"], before[key], "{context}");
            assert_eq!(change["to"], after[key], "{context}");
            assert_eq!(change["reason"], verdict.reason.as_str(), "{context}");
        }
        assert_eq!(
            malformed.contains(key),
            evidence.is_malformed(),
            "{context}"
        );
    }
    assert!(changes.keys().all(|key| expected.contains_key(key)));
}

/// Heartbeats ahead of the clock by more than the cutoff, and no others, have a timer.
async fn check_timers(client: &Client, expected: &Expected, now_secs: i64) {
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
    let ahead: BTreeMap<Key, i64> = expected
        .iter()
        .filter(|(_, (verdict, _))| verdict.reason == Reason::HeartbeatLost)
        .filter_map(|(key, (_, evidence))| Some((key.clone(), evidence.heartbeat_secs?)))
        .filter(|(_, heartbeat)| *heartbeat > now_secs)
        .map(|(key, heartbeat)| (key, heartbeat - CUTOFF))
        .collect();
    assert!(!ahead.is_empty());
    assert_eq!(timers, ahead);
}

fn check_every_rule_was_met(expected: &Expected) {
    for reason in [
        Reason::Retrying,
        Reason::EndSucceeded,
        Reason::EndFailed,
        Reason::Heartbeat,
        Reason::HeartbeatLost,
        Reason::NoHeartbeat,
    ] {
        let with = |wanted: &dyn Fn(&Evidence) -> bool| {
            expected
                .values()
                .filter(|(verdict, evidence)| verdict.reason == reason && wanted(evidence))
                .count()
        };
        assert!(with(&|_| true) >= 30, "{reason} is hardly met");
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
    let tied = expected.values().filter(|(_, evidence)| {
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
    assert!(tied.count() >= 30, "ties are hardly met");
}

async fn hold_against_the_model(jsonb: bool) {
    let (_, mut rng) = seeded();
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
    // Plans for tables of which nothing is known are bad ones, and slow here.
    client.batch_execute("analyze").await.expect("it is ours");

    let expected: Expected = cases
        .iter()
        .map(|case| {
            let verdict = case.evidence.judge(i128::from(now_secs) * MICROS, CUTOFF);
            (key(case), (verdict, case.evidence.clone()))
        })
        .collect();
    check_every_rule_was_met(&expected);
    let orphans: Vec<Key> = orphans.into_iter().map(|(key, _)| key).collect();

    scramble(&client).await;
    check_compare(&client, &expected).await;
    // The same where runs seem to have many metadata rows, and each is looked up by itself.
    client
        .batch_execute("update pg_class set reltuples = 1e9 where relname = 'metadata_v3'")
        .await
        .expect("the superuser may");
    check_compare(&client, &expected).await;
    client.batch_execute("analyze").await.expect("it is ours");
    check_explain(&client, &expected, now_secs).await;
    check_apply(&client, &expected, &orphans, &mut rng).await;
    check_timers(&client, &expected, now_secs).await;
    assert!(
        walk(&client, 2_000, &expected).await.is_empty(),
        "nothing differs now"
    );
    check_explain(&client, &expected, now_secs).await;
    // What is right is not written again.
    check_apply(&client, &expected, &orphans, &mut rng).await;
}

#[tokio::test]
async fn the_sql_agrees_with_the_model_on_a_text_column() {
    hold_against_the_model(false).await;
}

#[tokio::test]
async fn the_sql_agrees_with_the_model_on_a_jsonb_column() {
    hold_against_the_model(true).await;
}

/// One call of `reason`, with what the model needs for the same.
struct Instant {
    ok: Option<bool>,
    ok_ts: Option<i64>,
    retry_ts: Option<i64>,
    heartbeat: Option<i64>,
    now_micros: i128,
    cutoff: i64,
}

impl Instant {
    fn any(rng: &mut StdRng) -> Self {
        let cutoff = *pick(rng, &[1, 6, 60, 360, 315_360_000]);
        let heartbeat = match rng.random_range(0..8) {
            0 => None,
            1 => Some(*pick(rng, &[i64::MIN, i64::MAX, 0, -1])),
            _ => Some(rng.random_range(0..4_000_000_000)),
        };
        let from = i128::from(heartbeat.unwrap_or(1_700_000_000)) * MICROS;
        // A step around the edges, on both sides, down to a microsecond; exact ones too.
        let edge = i128::from(cutoff) * MICROS * pick(rng, &[-1, 0, 1]);
        let off = match rng.random_range(0..4) {
            0 => 0,
            1 => *pick(rng, &[-1, 1]),
            2 => rng.random_range(-1_000_000..=1_000_000),
            _ => rng.random_range(-1_000_000_000_000_000..1_000_000_000_000_000),
        };
        let ok = *pick(rng, &[None, None, Some(true), Some(false), Some(false)]);
        let times = [0, 1, 2, i64::MIN, i64::MAX];
        Self {
            ok,
            // A value that is no boolean has a time as well.
            ok_ts: (ok.is_some() || rng.random()).then(|| *pick(rng, &times)),
            retry_ts: rng.random::<bool>().then(|| *pick(rng, &times)),
            heartbeat,
            now_micros: from + edge + off,
            cutoff,
        }
    }

    fn judge(&self) -> Verdict {
        let row = |id, field: &str, value: &str, ts_ms| Row {
            id,
            step_name: "end".to_owned(),
            task_id: 1,
            field_name: field.to_owned(),
            value: Value::Text(value.to_owned()),
            ts_ms,
        };
        let said = self
            .ok
            .map_or("no boolean", |ok| if ok { "True" } else { "False" });
        let ok = self.ok_ts.map(|ts_ms| row(1, "attempt_ok", said, ts_ms));
        let retry = self.retry_ts.map(|ts_ms| row(2, "attempt", "1", ts_ms));
        Evidence {
            rows: ok.into_iter().chain(retry).collect(),
            heartbeat_secs: self.heartbeat,
        }
        .judge(self.now_micros, self.cutoff)
    }

    /// The only moment at which time alone can change the status: the heartbeat leaves the range, or
    /// comes into it.
    fn next_change(&self, verdict: &Verdict) -> Option<String> {
        let heartbeat = i128::from(self.heartbeat?);
        let cutoff = i128::from(self.cutoff);
        let secs = match verdict.reason {
            Reason::Heartbeat => heartbeat + cutoff,
            Reason::HeartbeatLost if heartbeat * MICROS > self.now_micros => heartbeat - cutoff,
            _ => return None,
        };
        Some(secs.to_string())
    }

    /// Seconds, with all of their digits.
    fn now_secs(&self) -> String {
        let (secs, micros) = (
            self.now_micros.div_euclid(MICROS),
            self.now_micros.rem_euclid(MICROS),
        );
        format!("{secs}::numeric + 0.{micros:06}")
    }
}

#[tokio::test]
async fn reasons_agree_with_the_model_at_every_edge_of_the_clock() {
    let (_, mut rng) = seeded();
    let database = Database::fresh().await;
    let client = migrated(&database).await;
    let instants: Vec<Instant> = (0..6_000).map(|_| Instant::any(&mut rng)).collect();
    let sql = |value: Option<String>| value.unwrap_or_else(|| "null".to_owned());
    let mut met = BTreeMap::new();
    for batch in instants.chunks(1_000) {
        let calls: Vec<String> = batch
            .iter()
            .enumerate()
            .map(|(at, instant)| {
                format!(
                    "({at}, status_indexer.reason({}, '{}', {}, {heartbeat}, {now}, {cutoff}),
                      {heartbeat}::bigint, {now}, {cutoff})",
                    sql(instant.ok.map(|ok| ok.to_string())),
                    instant.ok_ts.unwrap_or(0),
                    sql(instant.retry_ts.map(|ts| format!("'{ts}'"))),
                    heartbeat = sql(instant.heartbeat.map(|secs| format!("'{secs}'"))),
                    now = instant.now_secs(),
                    cutoff = instant.cutoff
                )
            })
            .collect();
        let query = format!(
            "select reason, status_indexer.status(reason),
                    status_indexer.next_change(reason, heartbeat, now_secs, cutoff)::text
               from (values {}) v (at, reason, heartbeat, now_secs, cutoff) order by at",
            calls.join(", ")
        );
        let rows = client
            .query(&query, &[])
            .await
            .expect("any number is judged");
        for (instant, row) in batch.iter().zip(rows) {
            let verdict = instant.judge();
            let (reason, status): (&str, &str) = (row.get(0), row.get(1));
            let context = format!(
                "ok {:?} at {:?}, retry {:?}, heartbeat {:?}, now {}, cutoff {}",
                instant.ok,
                instant.ok_ts,
                instant.retry_ts,
                instant.heartbeat,
                instant.now_secs(),
                instant.cutoff
            );
            assert_eq!(reason, verdict.reason.as_str(), "{context}");
            assert_eq!(status, verdict.status.as_str(), "{context}");
            let next: Option<String> = row.get(2);
            assert_eq!(next, instant.next_change(&verdict), "{context}");
            *met.entry(reason.to_owned()).or_insert(0) += 1;
        }
    }
    assert_eq!(met.len(), 6, "every rule was met: {met:?}");
    assert!(met.values().all(|count| *count >= 100), "often: {met:?}");
}

/// The definition's functions are inlined wherever they are used: none of them is a node or a call
/// in the plan. A function that is called costs more than all the rest of an evaluation.
#[tokio::test]
async fn the_definition_is_inlined_into_its_callers() {
    const EXPLAIN: &str = "\
explain (verbose, costs off)
select status_indexer.reason(e.ok, e.ok_ts, e.retry_ts, r.last_heartbeat_ts, 1.5, 360),
       status_indexer.status(status_indexer.reason(e.ok, e.ok_ts, e.retry_ts, r.last_heartbeat_ts, 1.5, 360)),
       status_indexer.next_change(r.run_status, r.last_heartbeat_ts, 1.5, 360),
       status_indexer.deadline_distance(r.run_status, r.last_heartbeat_ts, 1.5, 360),
       (select sum(b.ok_ts)
          from status_indexer.newest_attempt_ok_between(r.flow_id, 1, 2) b)
  from runs_v3 r
 cross join lateral status_indexer.evidence(r.flow_id, r.run_number) e";
    let database = Database::fresh().await;
    let client = migrated(&database).await;
    let rows = client.query(EXPLAIN, &[]).await.expect("it is planned");
    let plan: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let plan = plan.join("\n");
    // On one branch for each of the two fields; this one function is called on purpose.
    assert!(plan.contains("status_indexer.costly_equals("), "{plan}");
    let calls = plan.matches("status_indexer.").count();
    assert_eq!(
        calls,
        plan.matches("status_indexer.costly_equals(").count(),
        "{plan}"
    );
    assert!(!plan.contains("Function Scan"), "{plan}");
}

#[tokio::test]
async fn a_boolean_is_read_as_postgresql_and_the_model_read_it() {
    const CAST: &str = "\
create function pg_temp.cast_or_null(value text) returns boolean language plpgsql as $$
begin
  return value::boolean;
exception when invalid_text_representation then
  return null;
end
$$";
    let (_, mut rng) = seeded();
    let database = Database::fresh().await;
    let client = migrated(&database).await;
    client.batch_execute(CAST).await.expect("plpgsql is there");
    let mut texts: BTreeSet<String> = (0..5_000).map(|_| boolean_like(&mut rng)).collect();
    // Every character alone, around a word and in it: whatever a locale takes for white space or
    // for a letter's other case.
    for code in (1..0x250)
        .chain(0x2000..0x2070)
        .chain([0x212a, 0x3000, 0xfeff, 0x1f600])
    {
        let c = char::from_u32(code).expect("no surrogate is in these ranges");
        texts.extend([
            c.to_string(),
            format!("{c}true"),
            format!("off{c}"),
            format!("o{c}"),
        ]);
    }
    for _ in 0..2_000 {
        let length = rng.random_range(1..6);
        texts.insert(
            (0..length)
                .map(|_| char::from(rng.next_u32().to_le_bytes()[0] % 0x7f + 1))
                .collect(),
        );
    }
    let texts: Vec<String> = texts.into_iter().collect();
    let rows = client
        .query(
            "select t, status_indexer.parse_boolean(t), pg_temp.cast_or_null(t) from unnest($1::text[]) t",
            &[&texts],
        )
        .await
        .expect("any text is read");
    let (mut yes, mut no, mut neither) = (0, 0, 0);
    for row in rows {
        let (text, ours, theirs): (&str, Option<bool>, Option<bool>) =
            (row.get(0), row.get(1), row.get(2));
        assert_eq!(ours, theirs, "{text:?}: ours, PostgreSQL's");
        assert_eq!(ours, read_boolean(text), "{text:?}: ours, the model's");
        match ours {
            Some(true) => yes += 1,
            Some(false) => no += 1,
            None => neither += 1,
        }
    }
    assert!(
        yes > 100 && no > 100 && neither > 100,
        "{yes} {no} {neither}"
    );
}

// --- the cost

/// Buffers that a statement touches when it has run often before, as it has in a daemon.
async fn buffers(client: &Client, statement: &str) -> i64 {
    for _ in 0..8 {
        client.batch_execute(statement).await.expect("it runs");
    }
    let explain = format!("explain (analyze, buffers, format json) {statement}");
    let row = client.query_one(&explain, &[]).await.expect("it runs");
    let plan: Json = row.get(0);
    let plan = &plan[0]["Plan"];
    let count = |kind: &str| plan[kind].as_i64().expect("buffers were asked for");
    count("Shared Hit Blocks") + count("Shared Read Blocks")
}

#[tokio::test]
async fn a_run_with_20_000_metadata_rows_is_judged_by_a_few_pages() {
    let database = Database::fresh().await;
    let client = migrated(&database).await;
    let fill = "\
insert into flows_v3 (flow_id, ts_epoch) values ('F', 0);
insert into runs_v3 (flow_id, run_number, ts_epoch) select 'F', n, 0 from generate_series(1, 300) n;
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
select 'F', r, s, t, f, 'True', f, 1000 * t
  from generate_series(1, 300) r,
       lateral (select 'step_' || t % 10 as s, t from generate_series(1, case r when 7 then 4000 else 1 end) t) w,
       unnest(array['attempt', 'attempt_ok', 'origin', 'runtime', 'ds-type']) f;
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
select 'F', r, 'end', 9000, f, 'True', f, 9000000
  from generate_series(1, 300) r, unnest(array['attempt', 'attempt_ok', 'origin', 'runtime']) f";
    client
        .batch_execute(fill)
        .await
        .expect("rows can be written");
    let count: i64 = client
        .query_one("select count(*) from metadata_v3 where run_number = 7", &[])
        .await
        .expect("the table is there")
        .get(0);
    assert!(count > 20_000);
    let calls = [
        ("select * from status_indexer.evidence('F', 7)", 100),
        (
            "select * from status_indexer.apply(array['F'], array[7::bigint], null)",
            100,
        ),
        ("select status_indexer.explain('F', '7')", 100),
        // A walk passes by the index entries of all rows, but reads none of these rows.
        ("select * from status_indexer.compare('F', 6, 1)", 500),
    ];
    let newest = "metadata_v3_idx_flow_run_ts_id_desc";
    // Small runs all around, so that a plan that reads a whole run looks cheap to the planner.
    for (what, change) in [
        ("as upstream left it", "vacuum analyze".to_owned()),
        (
            "without upstream's newest index",
            format!("drop index {newest}; analyze"),
        ),
        (
            "with an index on the time",
            format!(
                "create index {newest} on metadata_v3 (flow_id, run_number, ts_epoch, id); vacuum analyze"
            ),
        ),
    ] {
        for part in change.split("; ") {
            client.batch_execute(part).await.expect("it can be changed");
        }
        for (call, most) in calls {
            let touched = buffers(&client, call).await;
            assert!(touched < most, "{what}: {call} touched {touched} buffers");
        }
    }
}
