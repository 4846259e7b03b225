//! The Helm chart, rendered by Helm's own SDK.
//!
//! [`sites`] owns the sets of values that sites use. Promises that each of them renders objects which
//! Kubernetes and the binary take, that other values are refused, and that the chart's parts agree:
//! values, schema, README, versions and the files for Prometheus and Grafana.

mod connection;
mod documents;
pub(super) mod sidecar;
mod sites;

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::kubernetes::{ask, check, containers, items, of_kind, one};
use super::manifests::strings;
use super::prometheus;
use crate::docs::{path, text};
use sites::{sites, values};

const CHART: &str = "deploy/helm/status-indexer";

const RULES: &str = "deploy/prometheus/rules.yml";

const DASHBOARD: &str = "deploy/grafana/status-indexer.json";

fn render(values: &Value) -> Value {
    json!({ "command": "render", "chart": path(CHART), "values": values })
}

/// What the values of a site render; none on a machine without Helm.
fn rendered(site: &str) -> Option<(Value, Vec<Value>)> {
    let answer = ask(&[render(&values(site))])?.remove(0);
    assert!(answer["refused"].is_null(), "{site}: {}", answer["refused"]);
    let objects = items(&answer["objects"]).to_vec();
    Some((answer["files"].clone(), objects))
}

/// The one container of the indexer in objects of a kind.
fn container<'o>(objects: &'o [Value], kind: &str, name: &str) -> &'o Value {
    let pod = &one(objects, kind)["spec"]["template"]["spec"];
    let found = containers(pod).find(|container| container["name"] == name);
    found.unwrap_or_else(|| panic!("no container {name} in {pod}"))
}

#[test]
fn each_site_gets_objects_that_kubernetes_and_the_binary_take() {
    let sites = sites();
    let requests = sites.iter().flat_map(|(_, values)| {
        let lint = json!({ "command": "lint", "chart": path(CHART), "values": values });
        [render(values), lint]
    });
    let requests: Vec<Value> = requests.collect();
    let Some(answers) = ask(&requests) else {
        return;
    };
    for ((site, _), answer) in sites.iter().zip(answers.chunks(2)) {
        let [rendered, findings] = answer else {
            unreachable!("each site has two requests")
        };
        assert!(
            rendered["refused"].is_null(),
            "{site}: {}",
            rendered["refused"]
        );
        assert_eq!(*findings, json!([]), "{site}");
        check(site, items(&rendered["objects"]));
        let hooks = rendered["objects"].to_string();
        assert!(
            !hooks.contains("-delete\""),
            "{site}: uninstall must not run anything"
        );
    }
}

#[test]
fn other_values_are_refused_with_a_reason() {
    let with = |more: Value| {
        let mut all = json!({ "metadatadb": { "host": "db" } });
        for (name, value) in more.as_object().expect("values are a mapping") {
            all[name] = value.clone();
        }
        all
    };
    let cases = [
        (json!({}), "set metadatadb.host"),
        (with(json!({ "replicas": 2 })), "'replicas' not allowed"),
        (
            with(json!({ "replicaCount": "two" })),
            "got string, want integer",
        ),
        (with(json!({ "mode": "both" })), "/mode"),
        (
            with(json!({ "metadatadb": { "hostname": "db" } })),
            "'hostname' not allowed",
        ),
        (
            with(json!({ "metadatadb": { "host": "db", "port": 65536 } })),
            "/metadatadb/port",
        ),
        (
            with(json!({ "metadatadb": { "host": "db", "ssl": { "mode": "always" } } })),
            "/metadatadb/ssl/mode",
        ),
        (
            with(json!({ "metadatadb": { "host": "db", "password": "p", "existingSecret": "s" } })),
            "either metadatadb.password",
        ),
        (
            with(json!({ "migration": { "mode": "hook" } })),
            "/migration/mode",
        ),
        (
            with(json!({ "migration": { "grantTo": "indexer" } })),
            "migration.mode initContainer or job",
        ),
        (
            json!({ "metadatadb": { "host": "db", "password": "p" }, "migration": { "mode": "job" } }),
            "before the chart's own Secret",
        ),
        (
            with(json!({ "image": { "digest": "latest" } })),
            "/image/digest",
        ),
        (
            with(json!({ "metrics": { "serviceMonitor": { "interval": "often" } } })),
            "interval",
        ),
        (
            with(
                json!({ "metrics": { "serviceMonitor": { "enabled": true }, "podMonitor": { "enabled": true } } }),
            ),
            "scraped twice",
        ),
        (
            with(json!({ "mode": "sidecar", "migration": { "mode": "initContainer" } })),
            "keep the metadata service from starting",
        ),
        (
            with(json!({ "mode": "sidecar", "api": { "enabled": true } })),
            "mode sidecar has no Service",
        ),
        (with(json!({ "podLabels": { "a": 1 } })), "/podLabels/a"),
    ];
    let requests: Vec<Value> = cases.iter().map(|(values, _)| render(values)).collect();
    let Some(answers) = ask(&requests) else {
        return;
    };
    for ((values, reason), answer) in cases.iter().zip(answers) {
        let refused = answer["refused"].as_str();
        let refused = refused.unwrap_or_else(|| panic!("{values} is not refused"));
        assert!(refused.contains(reason), "{values}: {refused}");
    }
}

#[test]
fn the_read_api_listens_only_if_it_is_enabled() {
    for (site, address) in [("default", "off"), ("read API", "[::]:8081")] {
        let Some((_, objects)) = rendered(site) else {
            return;
        };
        let daemon = container(&objects, "Deployment", "status-indexer");
        let args = strings(&daemon["args"]);
        let listen = args.iter().position(|arg| *arg == "--http-listen");
        let listen = listen.expect("the address is set");
        assert_eq!(args[listen + 1], address, "{site}");
        let ports: Vec<&Value> = items(&daemon["ports"])
            .iter()
            .map(|port| &port["containerPort"])
            .collect();
        assert_eq!(ports.contains(&&json!(8081)), address != "off", "{site}");
        let services = of_kind(&objects, "Service").len();
        assert_eq!(services, if address == "off" { 1 } else { 2 }, "{site}");
    }
}

#[tokio::test]
async fn the_rules_and_the_dashboard_are_those_of_the_repository() {
    let Some((_, objects)) = rendered("monitoring") else {
        return;
    };
    let rules = &one(&objects, "PrometheusRule")["spec"];
    let file: Value = serde_saphyr::from_str(&text(RULES)).expect("it is YAML");
    assert_eq!(rules["groups"], file["groups"]);
    let dashboard = &one(&objects, "ConfigMap")["data"]["status-indexer.json"];
    let dashboard: Value = serde_json::from_str(dashboard.as_str().expect("it is text"))
        .expect("the dashboard is JSON");
    let file: Value = serde_json::from_str(&text(DASHBOARD)).expect("it is JSON");
    assert_eq!(dashboard, file);
    if prometheus::there("promtool") {
        let directory = tempfile::tempdir().expect("a directory of our own");
        let file = directory.path().join("rules.yml");
        fs::write(&file, rules.to_string()).expect("it is ours");
        prometheus::promtool(&["check", "rules"], &file).await;
    }
}

/// The chart's files are links into the repository; a package has their contents.
#[test]
fn a_package_is_complete() {
    let directory = tempfile::tempdir().expect("a directory of our own");
    let request =
        json!({ "command": "package", "chart": path(CHART), "destination": directory.path() });
    let Some(answers) = ask(&[request]) else {
        return;
    };
    for (name, source) in [
        ("files/rules.yml", RULES),
        ("files/dashboard.json", DASHBOARD),
    ] {
        assert_eq!(answers[0][name].as_str(), Some(&*text(source)), "{name}");
    }
    let archive = directory
        .path()
        .join(format!("status-indexer-{}.tgz", env!("CARGO_PKG_VERSION")));
    assert!(archive.exists(), "the chart has the version of the binary");
}

#[test]
fn the_image_has_the_version_of_the_binary() {
    let Some((_, objects)) = rendered("default") else {
        return;
    };
    let image = &container(&objects, "Deployment", "status-indexer")["image"];
    assert_eq!(
        *image,
        format!("status-indexer:{}", env!("CARGO_PKG_VERSION"))
    );
    let (_, objects) = rendered("scheduling").expect("Helm is there");
    let image = container(&objects, "Deployment", "status-indexer")["image"].as_str();
    let image = image.expect("it has an image");
    assert!(
        image.starts_with("registry.example.com/team/status-indexer@sha256:"),
        "{image}"
    );
}

#[test]
fn the_programs_are_found_without_the_network() {
    let output = Command::new(path(".ci/python-tools"))
        .arg("--cached")
        .env("XDG_CACHE_HOME", "/nonexistent")
        .output()
        .expect("it can be executed");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
}
