//! The structure of the Grafana dashboard: it can be imported anywhere, and each panel explains itself.
//!
//! Owns the reader of the dashboard; `monitoring.rs` runs its queries.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::docs::text;

const DASHBOARD: &str = "deploy/grafana/status-indexer.json";

/// The width of Grafana's grid.
const COLUMNS: u64 = 24;

/// Units that Grafana knows, of those used here.
const UNITS: [&str; 6] = ["none", "s", "bytes", "percentunit", "ops", "reqps"];

fn dashboard() -> Value {
    serde_json::from_str(&text(DASHBOARD)).expect("the dashboard is JSON")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// The queries of the dashboard, each with the title of its panel.
pub(super) fn queries() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let panels = list(&dashboard["panels"]).iter();
    panels
        .flat_map(|panel| {
            let targets = list(&panel["targets"]).iter();
            targets.map(|target| (word(panel, "title").into(), word(target, "expr").into()))
        })
        .collect()
}

/// The queries of the variables, each with its name.
pub(super) fn variables() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let variables = list(&dashboard["templating"]["list"]).iter();
    variables
        .filter(|variable| variable["type"] == "query")
        .map(|variable| {
            (
                word(variable, "name").into(),
                word(variable, "definition").into(),
            )
        })
        .collect()
}

#[test]
fn it_has_the_form_of_a_dashboard_that_can_be_imported() {
    let dashboard = dashboard();
    // An imported dashboard gets an id from Grafana; the uid keeps its address.
    assert!(dashboard["id"].is_null());
    assert_eq!(dashboard["uid"], "status-indexer");
    assert_eq!(dashboard["title"], "status-indexer");
    let version = dashboard["schemaVersion"].as_u64();
    assert!(version.is_some_and(|version| version >= 39), "{version:?}");
    let variables = list(&dashboard["templating"]["list"]);
    let names: Vec<_> = variables.iter().map(|v| word(v, "name")).collect();
    assert_eq!(names, ["datasource", "job", "namespace", "instance"]);
    assert_eq!(variables[0]["type"], "datasource");
    assert_eq!(variables[0]["query"], "prometheus");
    for variable in &variables[1..] {
        assert_eq!(variable["datasource"]["uid"], "${datasource}");
        assert_eq!(variable["query"]["query"], variable["definition"]);
        assert_eq!(variable["includeAll"], true);
    }
    let rows: Vec<_> = list(&dashboard["panels"])
        .iter()
        .filter(|panel| panel["type"] == "row")
        .map(|panel| word(panel, "title"))
        .collect();
    let expected = [
        "Health",
        "Freshness",
        "Truth",
        "Load on the database",
        "Stages",
        "Read API",
        "Process",
    ];
    assert_eq!(rows, expected);
}

#[test]
fn panels_do_not_overlap_and_fill_their_lines() {
    let dashboard = dashboard();
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in list(&dashboard["panels"]) {
        let title = word(panel, "title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}");
        let side = |key: &str| panel["gridPos"][key].as_u64().expect("a number of cells");
        let (x, y, w, h) = (side("x"), side("y"), side("w"), side("h"));
        assert!(w > 0 && h > 0 && x + w <= COLUMNS, "{title}");
        for cell in (y..y + h).flat_map(|row| (x..x + w).map(move |column| (row, column))) {
            assert!(taken.insert(cell), "{title} overlaps another panel");
        }
    }
    let rows = taken.iter().map(|(row, _)| row + 1).max().unwrap_or(0);
    assert_eq!(taken.len() as u64, rows * COLUMNS, "there are gaps");
}

#[test]
fn each_panel_has_a_description_a_unit_and_the_chosen_data_source() {
    let dashboard = dashboard();
    let mut titles = BTreeSet::new();
    let mut count = 0;
    for panel in list(&dashboard["panels"]) {
        let title = word(panel, "title");
        assert!(titles.insert(title), "{title} occurs twice");
        if panel["type"] == "row" {
            continue;
        }
        count += 1;
        let description = word(panel, "description");
        assert!(
            description.len() > 20 && description.ends_with('.'),
            "{title}"
        );
        let unit = word(&panel["fieldConfig"]["defaults"], "unit");
        assert!(UNITS.contains(&unit), "{title}: {unit:?}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let targets = list(&panel["targets"]);
        assert!(!targets.is_empty(), "{title}");
        let mut references = BTreeSet::new();
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            assert!(references.insert(word(target, "refId")), "{title}");
            assert!(!word(target, "legendFormat").is_empty(), "{title}");
        }
    }
    assert!(count >= 30, "{count}");
}

#[test]
fn each_query_keeps_to_the_chosen_installation() {
    const CHOSEN: &str = r#"job=~"$job", namespace=~"$namespace", instance=~"$instance"}"#;
    for (title, query) in queries() {
        assert!(
            query.contains(CHOSEN) || query.contains("ALERTS"),
            "{title}: {query}"
        );
    }
}
