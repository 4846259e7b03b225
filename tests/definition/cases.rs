//! Generated runs with their evidence, and their way into the database.
//!
//! Promises every rule of the definition often, heartbeats away from the edges of the cutoff, and
//! values, names and times that are easily treated wrongly.

use std::collections::BTreeSet;

use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value as Json, json};
use testkit::oracle::{Evidence, Row, Value};
use tokio_postgres::Client;

/// Runs of one database.
pub(super) const RUNS: usize = 2_500;

/// Upstream's default, which `migrate` installs unless configured otherwise.
pub(super) const CUTOFF: i64 = 360;

/// Names of flows that must reach the database unchanged.
const FLOWS: [&str; 5] = ["Flow", "flow", "Fl'o\"w", "流れ $1 %s {{runs}}", ""];

/// A run with all of its evidence.
pub(super) struct Case {
    pub(super) flow_id: &'static str,
    pub(super) run_number: i32,
    pub(super) evidence: Evidence,
}

/// The run that evidence belongs to: a key as the metadata has it.
pub(super) type Key = (String, i64);

pub(super) fn pick<'a, T>(rng: &mut StdRng, from: &'a [T]) -> &'a T {
    &from[rng.random_range(0..from.len())]
}

/// Texts around every spelling of a boolean: the spellings, in any case, with white space,
/// shortened, lengthened, quoted, and texts that only look similar.
pub(super) fn boolean_like(rng: &mut StdRng) -> String {
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

/// Heartbeats well away from the edges of the cutoff, because the real clock advances.
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
    // Few distinct times, so that there are ties.
    let base = *pick(rng, &[now_ms, now_ms, now_ms, 0, i64::MIN, i64::MAX - 3]);
    let mut rows: Vec<Row> = Vec::new();
    for _ in 0..count {
        *ids += rng.random_range(1..3);
        if rng.random_ratio(1, 8)
            && let Some(copy) = rows.last().cloned()
        {
            // A client that retries.
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
    // Ids need not be in the order of the times.
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

pub(super) fn cases(rng: &mut StdRng, now_secs: i64, jsonb: bool) -> Vec<Case> {
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

/// Evidence without a run, next to the keys of existing runs.
pub(super) fn orphans(rng: &mut StdRng, cases: &[Case], jsonb: bool) -> Vec<(Key, Row)> {
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

pub(super) async fn insert_runs(client: &Client, cases: &[Case]) {
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

pub(super) async fn insert_metadata(client: &Client, rows: &[(Key, &Row)], jsonb: bool) {
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

/// Stores random statuses, so that every case has to be decided.
pub(super) async fn store_random_statuses(client: &Client) {
    client
        .batch_execute(
            "update runs_v3
                set run_status = (array['running', 'completed', 'failed'])[1 + (random() * 2.999)::int % 3]",
        )
        .await
        .expect("the column can be written");
}
