//! Pages compared with a plain query for the same filters, on random runs and with random filters.
//!
//! The plain query is built here in the simplest SQL, with values as literals and without paging. A
//! failure prints its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::Value;
use testkit::seed::Seed;

use super::server::ApiServer;

const RUNS: i32 = 160;
const STATUSES: [&str; 3] = ["running", "completed", "failed"];
const USERS: [&str; 5] = ["alice", "bob", "Älice", "o'b\\r%_", "x"];
const TAGS: [&str; 5] = ["a", "b", "user:alice", "user:bob", "q'\"\\u"];

fn one<'a>(rng: &mut StdRng, of: &[&'a str]) -> &'a str {
    of[rng.random_range(0..of.len())]
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn nullable(rng: &mut StdRng, text: impl FnOnce(&mut StdRng) -> String) -> String {
    if rng.random_bool(0.15) {
        "null".to_owned()
    } else {
        text(rng)
    }
}

fn tag_list(rng: &mut StdRng) -> String {
    let tags: Vec<&str> = TAGS.into_iter().filter(|_| rng.random_bool(0.35)).collect();
    literal(&serde_json::to_string(&tags).expect("text is JSON"))
}

/// One row of random values; several share a `ts_epoch`, so that the run's number decides.
fn row(rng: &mut StdRng, number: i32, ts_epoch: i64) -> String {
    let user = nullable(rng, |rng| literal(one(rng, &USERS)));
    let tags = nullable(rng, tag_list);
    let system_tags = nullable(rng, tag_list);
    let run_id = if rng.random_bool(0.2) {
        literal(&format!("id-{number}"))
    } else {
        "null".to_owned()
    };
    let heartbeat = nullable(rng, |rng| rng.random_range(-5..5).to_string());
    let status = literal(one(rng, &STATUSES));
    format!(
        "('F', {number}, {user}, {ts_epoch}, {tags}, {system_tags}, {run_id}, {heartbeat}, {status})"
    )
}

fn insert(rows: &[String]) -> String {
    format!(
        "insert into runs_v3 (flow_id, run_number, user_name, ts_epoch, tags, system_tags, run_id, last_heartbeat_ts, run_status) values {}",
        rows.join(", ")
    )
}

/// A filter: the parameter, and its meaning as an SQL condition.
struct Wanted {
    key: String,
    value: String,
    means: String,
}

fn field(rng: &mut StdRng) -> Wanted {
    let names = [
        "flow_id",
        "run_number",
        "run_id",
        "user_name",
        "ts_epoch",
        "last_heartbeat_ts",
        "tags",
        "system_tags",
        "user",
    ];
    let name = one(rng, &names);
    let textual = ["flow_id", "run_id", "user_name", "user"].contains(&name);
    let operators: &[&str] = if textual {
        &[
            "eq", "ne", "lt", "le", "gt", "ge", "co", "sw", "ew", "li", "is",
        ]
    } else {
        &["eq", "ne", "lt", "le", "gt", "ge", "is"]
    };
    let operator = one(rng, operators);
    let column = match name {
        "user" => "(case when system_tags ? ('user:' || user_name) then user_name else null end)",
        other => other,
    };
    let count = if rng.random_bool(0.6) {
        1
    } else {
        rng.random_range(1..4)
    };
    let mut values = Vec::new();
    let mut parts = Vec::new();
    for _ in 0..count {
        if operator == "is" || rng.random_bool(0.1) {
            values.push("null".to_owned());
            parts.push(format!("{column} is null"));
            continue;
        }
        let value = match name {
            "flow_id" => one(rng, &["F", "f", "G", ""]).to_owned(),
            "run_number" => rng.random_range(0..=RUNS).to_string(),
            "run_id" => format!("id-{}", rng.random_range(0..=RUNS)),
            "user_name" | "user" => {
                let user = one(rng, &USERS);
                if operator == "li" {
                    format!("%{}", user.replace('\\', "\\\\"))
                } else {
                    user.to_owned()
                }
            }
            "ts_epoch" => rng.random_range(990..1030).to_string(),
            "last_heartbeat_ts" => rng.random_range(-5..5).to_string(),
            _ => one(rng, &["[]", "[\"a\"]", "{}", "[\"b\"]"]).to_owned(),
        };
        let compared = match operator {
            "eq" => format!("= {}", literal(&value)),
            "ne" => format!("<> {}", literal(&value)),
            "lt" => format!("< {}", literal(&value)),
            "le" => format!("<= {}", literal(&value)),
            "gt" => format!("> {}", literal(&value)),
            "ge" => format!(">= {}", literal(&value)),
            "co" => format!("ilike {}", literal(&format!("%{value}%"))),
            "sw" => format!("ilike {}", literal(&format!("{value}%"))),
            "ew" => format!("ilike {}", literal(&format!("%{value}"))),
            _ => format!("ilike {}", literal(&value)),
        };
        parts.push(format!("{column} {compared}"));
        values.push(value);
    }
    let key = if operator == "eq" && rng.random_bool(0.5) {
        name.to_owned()
    } else {
        format!("{name}:{operator}")
    };
    Wanted {
        key,
        value: values.join(","),
        means: format!("({})", parts.join(" or ")),
    }
}

fn tags(rng: &mut StdRng) -> Wanted {
    let values: Vec<&str> = (0..rng.random_range(1..3))
        .map(|_| one(rng, &TAGS))
        .collect();
    let operator = one(rng, &["", ":all", ":any", ":likeany", ":likeall"]);
    let joint = if operator.ends_with("any") {
        " or "
    } else {
        " and "
    };
    let parts: Vec<String> = values
        .iter()
        .map(|value| {
            if operator.starts_with(":like") {
                format!(
                    "tags::text || system_tags::text like {}",
                    literal(&format!("%{value}%"))
                )
            } else {
                format!("(tags || system_tags) ? {}", literal(value))
            }
        })
        .collect();
    Wanted {
        key: format!("_tags{operator}"),
        value: values.join(","),
        means: format!("({})", parts.join(joint)),
    }
}

/// Status parameters (none, one, several, repeated, `ne`), and their combined meaning.
fn statuses(rng: &mut StdRng) -> Vec<Wanted> {
    let several = |rng: &mut StdRng| {
        let count = rng.random_range(1..4);
        (0..count).map(|_| one(rng, &STATUSES)).collect::<Vec<_>>()
    };
    let list = |values: &[&str]| {
        values
            .iter()
            .map(|value| literal(value))
            .collect::<Vec<_>>()
            .join(", ")
    };
    match rng.random_range(0..5) {
        0 => Vec::new(),
        1 => {
            let value = one(rng, &STATUSES);
            vec![Wanted {
                key: "status:ne".to_owned(),
                value: value.to_owned(),
                means: format!("run_status <> {}", literal(value)),
            }]
        }
        2 => {
            // Repeated: the first one has the combined meaning.
            let values = several(rng);
            let means = format!("run_status in ({})", list(&values));
            values
                .into_iter()
                .enumerate()
                .map(|(at, value)| Wanted {
                    key: "status".to_owned(),
                    value: value.to_owned(),
                    means: if at == 0 {
                        means.clone()
                    } else {
                        "true".to_owned()
                    },
                })
                .collect()
        }
        _ => {
            let values = several(rng);
            vec![Wanted {
                key: one(rng, &["status", "status:eq"]).to_owned(),
                value: values.join(","),
                means: format!("run_status in ({})", list(&values)),
            }]
        }
    }
}

async fn fill(server: &ApiServer, rng: &mut StdRng) {
    let rows: Vec<String> = (1..=RUNS)
        .map(|number| {
            let ts_epoch = rng.random_range(1000..1020);
            row(rng, number, ts_epoch)
        })
        .collect();
    server.sql("insert into flows_v3 (flow_id, user_name, ts_epoch, tags, system_tags) values ('F', 't', 1, '[]', '[]'), ('G', 't', 1, '[]', '[]')").await;
    server.sql(&insert(&rows)).await;
    server.sql("insert into runs_v3 (flow_id, ts_epoch, tags, system_tags) select 'G', 1000 + i, '[]', '[]' from generate_series(1, 50) i").await;
}

/// The runs as a client would get them on a single page.
async fn plain_query(server: &ApiServer, condition: &str, with_status: bool) -> Vec<Value> {
    let status = if with_status {
        "|| jsonb_build_object('status', run_status)"
    } else {
        ""
    };
    let sql = format!(
        "select jsonb_build_object(
            'flow_id', flow_id,
            'run_number', case when run_id is null then to_jsonb(run_number) else to_jsonb(run_id) end,
            'user_name', user_name, 'ts_epoch', ts_epoch, 'tags', tags, 'system_tags', system_tags,
            'last_heartbeat_ts', last_heartbeat_ts) {status}
          || case when system_tags ? ('user:' || user_name) then jsonb_build_object('user', user_name) else '{{}}' end
   from (select * from runs_v3 offset 0) all_runs
  where flow_id = 'F' and {condition}
  order by ts_epoch desc, run_number desc"
    );
    let rows = server.client.query(&sql, &[]).await.expect("valid SQL");
    rows.iter().map(|row| row.get(0)).collect()
}

/// All pages by their cursors; `between` runs after each page.
async fn read_pages(
    server: &ApiServer,
    params: &[(String, String)],
    limit: usize,
    mut between: impl AsyncFnMut(usize),
) -> Vec<Value> {
    let mut seen = Vec::new();
    let mut cursor: Option<String> = None;
    for page in 0.. {
        assert!(page < 1000, "the pages end");
        let limit_text = limit.to_string();
        let mut all: Vec<(&str, &str)> = params
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        all.push(("_limit", &limit_text));
        if let Some(cursor) = &cursor {
            all.push(("_cursor", cursor));
        }
        let answer = server.runs(&all).await;
        assert_eq!(answer.code, 200, "{}", answer.text);
        let runs = answer.json();
        let runs = runs.as_array().expect("an array");
        assert!(runs.len() <= limit);
        seen.extend(runs.iter().cloned());
        match answer.header("x-next-cursor") {
            Some(next) => {
                assert_eq!(runs.len(), limit, "only the last page is short");
                cursor = Some(next.to_owned());
            }
            None => break,
        }
        between(page).await;
    }
    seen
}

#[tokio::test]
async fn pages_equal_the_result_of_a_plain_query() {
    let seed = Seed::from_env();
    println!("{seed}");
    let mut rng = seed.generator(0);
    let server = ApiServer::new().await;
    fill(&server, &mut rng).await;
    let mut nonempty = 0;
    for case in 0..150 {
        let mut wanted = statuses(&mut rng);
        for _ in 0..rng.random_range(0..3) {
            wanted.push(if rng.random_bool(0.3) {
                tags(&mut rng)
            } else {
                field(&mut rng)
            });
        }
        let with_status = wanted.iter().any(|wanted| wanted.key.starts_with("status"));
        let mut condition = String::from("true");
        let mut params = Vec::new();
        for Wanted { key, value, means } in wanted {
            write!(condition, " and {means}").expect("memory takes text");
            params.push((key, value));
        }
        let expected = plain_query(&server, &condition, with_status).await;
        nonempty += usize::from(!expected.is_empty());
        let limit = if rng.random_bool(0.3) {
            rng.random_range(1..8)
        } else {
            rng.random_range(8..200)
        };
        let seen = read_pages(&server, &params, limit, async |_| {}).await;
        assert_eq!(
            seen, expected,
            "{seed}, case {case}: {params:?}, {limit} a page"
        );
        // The same through offsets, while nothing changes.
        let offset = rng.random_range(0..RUNS);
        let mut at: Vec<(String, String)> = params.clone();
        at.push(("_offset".to_owned(), offset.to_string()));
        at.push(("_limit".to_owned(), "500".to_owned()));
        let borrowed: Vec<(&str, &str)> = at
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        let skipped = server.runs(&borrowed).await.json();
        let rest: Vec<Value> = expected
            .into_iter()
            .skip(usize::try_from(offset).expect("positive"))
            .collect();
        assert_eq!(skipped, Value::from(rest), "{seed}, case {case}: {at:?}");
    }
    assert!(nonempty > 30, "the filters are not all in vain: {nonempty}");
    let all = server.get("/flows/F/runs").await.json();
    assert_eq!(all, Value::from(plain_query(&server, "true", false).await));
}

fn number(run: &Value) -> i64 {
    match &run["run_number"] {
        Value::String(id) => id[3..].parse().expect("ids hold the number"),
        other => other.as_i64().expect("a number"),
    }
}

#[tokio::test]
async fn pages_are_stable_while_runs_are_inserted_and_changed() {
    let seed = Seed::from_env();
    println!("{seed}");
    let mut rng = seed.generator(0);
    for case in 0..12 {
        let server = ApiServer::new().await;
        fill(&server, &mut rng).await;
        let params: Vec<(String, String)> = match case % 4 {
            0 => vec![("status".to_owned(), one(&mut rng, &STATUSES).to_owned())],
            1 => vec![("status:ne".to_owned(), one(&mut rng, &STATUSES).to_owned())],
            2 => vec![("status".to_owned(), "running,completed,failed".to_owned())],
            _ => vec![
                ("status".to_owned(), "running".to_owned()),
                ("status".to_owned(), "failed".to_owned()),
                ("user_name:ne".to_owned(), "x".to_owned()),
            ],
        };
        let condition = match case % 4 {
            0 => format!("run_status = {}", literal(&params[0].1)),
            1 => format!("run_status <> {}", literal(&params[0].1)),
            2 => "true".to_owned(),
            _ => "run_status in ('running', 'failed') and user_name <> 'x'".to_owned(),
        };
        let before: BTreeSet<i64> = plain_query(&server, &condition, true)
            .await
            .iter()
            .map(number)
            .collect();
        let mut touched = BTreeSet::new();
        let mut next = RUNS + 1000;
        let limit = rng.random_range(1..12);
        let seen = read_pages(&server, &params, limit, async |_| {
            for _ in 0..rng.random_range(0..6) {
                let run = rng.random_range(1..=RUNS);
                let status = one(&mut rng, &STATUSES);
                server.sql(&format!("update runs_v3 set run_status = '{status}' where flow_id = 'F' and run_number = {run}")).await;
                touched.insert(i64::from(run));
            }
            if rng.random_bool(0.5) {
                next += 1;
                let ts_epoch = rng.random_range(995..1025);
                let new = row(&mut rng, next, ts_epoch);
                server.sql(&insert(&[new])).await;
            }
        })
        .await;
        let mut times: BTreeMap<i64, u32> = BTreeMap::new();
        for run in &seen {
            *times.entry(number(run)).or_default() += 1;
        }
        let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "{seed}, case {case}: twice {twice:?}");
        let skipped: Vec<_> = before
            .difference(&touched)
            .filter(|run| !times.contains_key(run))
            .collect();
        assert!(
            skipped.is_empty(),
            "{seed}, case {case}: skipped {skipped:?}"
        );
        let key = |run: &Value| (run["ts_epoch"].as_i64(), number(run));
        assert!(
            seen.is_sorted_by(|a, b| key(a) > key(b)),
            "{seed}, case {case}: the order"
        );
    }
}
