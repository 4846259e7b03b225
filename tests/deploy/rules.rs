//! The alerting and recording rules: each alert is tested, explained, and leads to the runbook.
//!
//! Owns the reader of `rules.yml`, which the other tests of monitoring use. `promtool` runs
//! `rules.test.yml` and `rules-long.test.yml`; the tests here see to it that these cover every alert.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use status_indexer::metrics::{Condition, Metrics};

use super::prometheus::{promtool, there};
use crate::docs::{path, text};

const RULES: &str = "deploy/prometheus/rules.yml";

const TESTS: [&str; 2] = [
    "deploy/prometheus/rules.test.yml",
    "deploy/prometheus/rules-long.test.yml",
];

/// What Prometheus adds to the labels of an alert.
const ADDED: [&str; 4] = ["__name__", "alertname", "alertstate", "severity"];

fn yaml(name: &str) -> Value {
    serde_saphyr::from_str(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Every rule, alerting and recording.
pub(super) fn rules() -> Vec<Value> {
    let rules = yaml(RULES);
    let groups = list(&rules["groups"]).iter();
    groups
        .flat_map(|group| list(&group["rules"]).to_vec())
        .collect()
}

/// The names of all alerts, in the order of the file.
pub(super) fn alerts() -> Vec<String> {
    let rules = rules();
    let names = rules.iter().filter_map(|rule| rule["alert"].as_str());
    names.map(str::to_owned).collect()
}

/// The parts of a query that select series of the indexer, its process or its target, with their
/// matchers. Not those that rules record.
pub(super) fn selectors(query: &str) -> BTreeSet<String> {
    const NAMES: [&str; 2] = ["status_indexer_", "process_"];
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = BTreeSet::new();
    let mut rest = query;
    while let Some(start) = rest.find(is_name) {
        rest = &rest[start..];
        let length = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let name = &rest[..length];
        if name == "up" || NAMES.iter().any(|start| name.starts_with(start)) {
            // No value of a label contains a brace.
            let matchers = rest[length..].strip_prefix('{');
            let matchers = matchers.and_then(|rest| rest.find('}'));
            let end = matchers.map_or(length, |end| length + end + 2);
            found.insert(rest[..end].to_owned());
        }
        rest = &rest[length..];
    }
    found
}

/// The labels of an `ALERTS` series in a test of the rules, or of anything of that form.
fn labels(series: &str) -> BTreeMap<String, String> {
    let inside = series.split_once('{').map_or("", |(_, rest)| rest);
    let pairs = inside.trim_end_matches('}').split(", ");
    pairs
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
        .collect()
}

/// Seconds of a time such as `1d6h`.
fn seconds(time: &str) -> u64 {
    let mut total = 0;
    let mut number = 0;
    for character in time.chars() {
        let unit = match character {
            'd' => 86_400,
            'h' => 3_600,
            'm' => 60,
            's' => 1,
            digit => {
                let digit = digit.to_digit(10).expect("a time has digits and units");
                number = number * 10 + u64::from(digit);
                continue;
            }
        };
        total += number * unit;
        number = 0;
    }
    total
}

/// What the tests ask about each alert: per test, the times with whether it fires, and its labels.
#[derive(Default)]
struct Tested {
    times: Vec<(u64, bool)>,
    labels: BTreeSet<String>,
}

fn tested() -> BTreeMap<String, Vec<Tested>> {
    let mut found: BTreeMap<String, Vec<Tested>> = BTreeMap::new();
    for file in TESTS {
        for test in list(&yaml(file)["tests"]) {
            let mut of_test: BTreeMap<String, Tested> = BTreeMap::new();
            for case in list(&test["promql_expr_test"]) {
                let asked = labels(case["expr"].as_str().expect("a case has an expression"));
                let Some(alert) = asked.get("alertname") else {
                    continue;
                };
                assert_eq!(asked["alertstate"], "firing", "{file}: {case}");
                let entry = of_test.entry(alert.clone()).or_default();
                let time = case["eval_time"].as_str().expect("a case has a time");
                let samples = list(&case["exp_samples"]);
                entry.times.push((seconds(time), !samples.is_empty()));
                for sample in samples {
                    let fired = labels(sample["labels"].as_str().expect("a sample has labels"));
                    let names = fired.into_keys();
                    let own = names.filter(|name| !ADDED.contains(&name.as_str()));
                    entry.labels.extend(own);
                }
            }
            for (alert, tested) in of_test {
                found.entry(alert).or_default().push(tested);
            }
        }
    }
    found
}

#[tokio::test]
async fn promtool_accepts_the_rules() {
    if there("promtool") {
        promtool(&["check", "rules"], &path(RULES)).await;
    }
}

#[tokio::test]
async fn the_tests_of_the_rules_succeed() {
    if !there("promtool") {
        return;
    }
    let (short, long) = (path(TESTS[0]), path(TESTS[1]));
    tokio::join!(
        promtool(&["test", "rules"], &short),
        promtool(&["test", "rules"], &long)
    );
}

#[test]
fn each_alert_is_tested_to_be_silent_to_fire_and_to_resolve() {
    let tested = tested();
    for alert in alerts() {
        let complete = tested.get(&alert).is_some_and(|tests| {
            tests.iter().any(|test| {
                let fires = test.times.iter().find(|(_, fires)| *fires);
                fires.is_some_and(|(at, _)| {
                    let silent = |after: bool| {
                        let mut times = test.times.iter();
                        times.any(|(time, fires)| !fires && (time > at) == after)
                    };
                    silent(false) && silent(true)
                })
            })
        });
        assert!(complete, "{alert} lacks a test with all three");
    }
    for alert in tested.keys() {
        assert!(
            alerts().contains(alert),
            "{alert} is tested but not defined"
        );
    }
}

#[test]
fn each_alert_says_what_to_do_first_and_where_to_read_on() {
    let tested = tested();
    let file = text(RULES);
    for rule in rules().iter().filter(|rule| rule["alert"].is_string()) {
        let name = rule["alert"].as_str().expect("it is an alert");
        assert!(name.starts_with("StatusIndexer"), "{name}");
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
        assert!(["critical", "warning"].contains(&severity), "{name}");
        let lasts = rule["for"].as_str().unwrap_or_default();
        assert!(seconds(lasts) >= 60, "{name}: for {lasts:?}");

        let annotation = |key: &str| rule["annotations"][key].as_str().unwrap_or_default();
        let url = format!("docs/runbook.md#{}", name.to_lowercase());
        assert_eq!(annotation("runbook_url"), url, "{name}");
        assert!(annotation("summary").len() > 20, "{name}");
        let description = annotation("description");
        assert!(description.contains("First "), "{name}: {description}");
        // Templates name only labels that the alert has.
        let known: BTreeSet<&String> = tested[name].iter().flat_map(|test| &test.labels).collect();
        for part in [annotation("summary"), description] {
            for used in part.split("$labels.").skip(1) {
                let end = used.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                let used = &used[..end.unwrap_or(used.len())];
                assert!(known.iter().any(|label| *label == used), "{name}: {used}");
            }
        }
        for label in known {
            let shown = format!("$labels.{label} ");
            assert!(description.contains(&shown), "{name} hides {label}");
        }

        // The reason for the threshold, just above.
        let above = file.split(&format!("- alert: {name}\n")).next();
        let above = above.unwrap_or_default().trim_end();
        let last = above.lines().next_back().unwrap_or_default();
        assert!(last.trim().starts_with('#'), "{name} has no reason above");
    }
}

#[test]
fn every_condition_has_an_alert() {
    let rules = rules();
    for condition in Condition::ALL {
        let name = condition.name();
        let matcher = format!("status_indexer_unhealthy{{condition=\"{name}\"}}");
        let used = rules
            .iter()
            .filter(|rule| rule["alert"].is_string())
            .any(|rule| rule["expr"].as_str().unwrap_or_default().contains(&matcher));
        assert!(used, "{name}");
    }
}

#[test]
fn aggregations_keep_what_identifies_an_installation_and_no_value_of_it() {
    for rule in rules() {
        let expr = rule["expr"].as_str().expect("a rule has an expression");
        for keyword in [" by (", "on ("] {
            for rest in expr.split(keyword).skip(1) {
                assert!(rest.starts_with("job, namespace"), "{expr}");
            }
        }
        let all = expr.matches(" by (").count() + expr.matches(" without (").count();
        let aggregations = ["sum ", "max ", "min ", "count ", "group ", "avg "];
        let used: usize = aggregations.iter().map(|a| expr.matches(a).count()).sum();
        assert_eq!(used, all, "{expr}");
        for label in ["job", "namespace", "instance"] {
            for operator in ["=\"", "=~\"", "!=\"", "!~\""] {
                assert!(!expr.contains(&format!("{label}{operator}")), "{expr}");
            }
        }
    }
}

#[test]
fn every_label_in_an_expression_is_one_of_a_metric() {
    let declared = Metrics::new().declared();
    let mut known: BTreeSet<String> = declared.into_iter().flat_map(|m| m.labels).collect();
    known.extend(["job", "namespace", "instance", "le"].map(str::to_owned));
    let mut count = 0;
    for rule in rules() {
        let expr = rule["expr"].as_str().expect("a rule has an expression");
        for keyword in [" by (", "on (", "without ("] {
            for rest in expr.split(keyword).skip(1) {
                let names = rest.split(')').next().expect("a list is closed");
                for name in names.split(", ") {
                    assert!(known.contains(name), "{name}: {expr}");
                    count += 1;
                }
            }
        }
    }
    assert!(count > 50, "{count}");
}

#[test]
fn objectives_use_a_bucket_of_the_histogram() {
    let rendered = Metrics::new().render();
    for (histogram, bound) in [
        ("status_indexer_event_lag_seconds_bucket{", "1"),
        ("status_indexer_sweep_lag_seconds_bucket{", "5"),
        ("status_indexer_http_request_duration_seconds_bucket{", "1"),
    ] {
        let bucket = format!("le=\"{bound}\"");
        let exported = rendered
            .lines()
            .any(|line| line.starts_with(histogram) && line.contains(&bucket));
        assert!(exported, "{histogram}{bucket}");
    }
}

#[test]
fn selectors_are_found_with_their_matchers() {
    let found =
        selectors("sum by (up_to) (rate(status_indexer_a{b=~\"c.*\"}[5m])) / process_x == up");
    let expected = ["process_x", "status_indexer_a{b=~\"c.*\"}", "up"];
    assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
    assert!(selectors("status_indexer:recorded > upper").is_empty());
    assert_eq!(seconds("1d6h"), 108_000);
}
