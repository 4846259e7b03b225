//! `deploy/compose.yaml` and its files against the binary, Prometheus and Podman Compose.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::kubernetes::{items, tools};
use super::manifests::{default_port, strings, takes_options_and_variables};
use super::prometheus::there;
use crate::docs::{path, text};

const COMPOSE: &str = "deploy/compose.yaml";

fn compose() -> Value {
    serde_saphyr::from_str(&text(COMPOSE)).expect("it is YAML")
}

fn services() -> BTreeMap<String, Value> {
    let services = compose()["services"].clone();
    serde_json::from_value(services).expect("services have names")
}

/// The services of this project's image.
fn ours() -> BTreeMap<String, Value> {
    let mut found = services();
    found.retain(|_, service| service["image"] == image());
    assert_eq!(found.len(), 2, "migrate and run");
    found
}

fn image() -> String {
    format!("status-indexer:{}", env!("CARGO_PKG_VERSION"))
}

/// Whether a service goes on until it is stopped, and not only until its work is done.
fn stays(service: &Value) -> bool {
    !service["restart"].is_null()
}

#[test]
fn our_services_use_only_options_and_variables_of_the_binary() {
    for (name, service) in ours() {
        let environment = service["environment"].as_object();
        let variables: Vec<_> = environment
            .expect("it needs a database")
            .keys()
            .map(|name| json!({ "name": name }))
            .collect();
        let check = strings(&service["healthcheck"]["test"]);
        let check = check.strip_prefix(&["CMD", "/usr/local/bin/status-indexer"]);
        for args in std::iter::once(strings(&service["command"])).chain(check.map(<[_]>::to_vec)) {
            takes_options_and_variables(&name, &json!({ "args": args, "env": variables }));
        }
        assert_eq!(service["build"]["context"], "..", "{name}");
        let dockerfile = service["build"]["dockerfile"]
            .as_str()
            .expect("it is built");
        assert!(path(dockerfile).exists(), "{name}: {dockerfile}");
    }
}

/// The service and the indexer agree on the database and on the cutoff.
#[test]
fn the_metadata_service_has_the_variables_of_the_indexer() {
    let services = services();
    let environment = &services["metadata-service"]["environment"];
    assert_eq!(services["indexer"]["environment"], *environment);
    let database = &services["database"]["environment"];
    for (own, other) in [
        ("POSTGRES_USER", "MF_METADATA_DB_USER"),
        ("POSTGRES_PASSWORD", "MF_METADATA_DB_PSWD"),
        ("POSTGRES_DB", "MF_METADATA_DB_NAME"),
    ] {
        assert!(database[own].is_string(), "{own}");
        assert_eq!(database[own], environment[other], "{own}");
    }
    assert!(services.contains_key(environment["MF_METADATA_DB_HOST"].as_str().unwrap_or("")));
}

#[test]
fn every_service_is_pinned_locked_down_and_monitored() {
    for (name, service) in services() {
        let image = service["image"]
            .as_str()
            .expect("every service names an image");
        let (_, tag) = image
            .rsplit_once(':')
            .unwrap_or_else(|| panic!("{name}: no tag"));
        assert!(
            tag.starts_with(|c: char| c.is_ascii_digit() || c == 'v'),
            "{name}: {tag}"
        );
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(strings(&service["cap_drop"]), ["ALL"], "{name}");
        assert_eq!(
            strings(&service["security_opt"]),
            ["no-new-privileges:true"],
            "{name}"
        );
        assert!(
            service["cap_add"].is_null() && service["privileged"].is_null(),
            "{name}"
        );
        for port in strings(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
        }
        let checked = service["healthcheck"]["test"].is_array();
        assert_eq!(checked, stays(&service), "{name}");
        for argument in service["build"]["args"].as_object().into_iter().flatten() {
            assert!(!argument.1.to_string().contains("latest"), "{name}");
        }
    }
}

#[test]
fn services_wait_for_what_they_need() {
    let services = services();
    let mut count = 0;
    for (name, service) in &services {
        for (needed, how) in service["depends_on"].as_object().into_iter().flatten() {
            let needed = services
                .get(needed)
                .unwrap_or_else(|| panic!("{name}: {needed}"));
            let condition = if stays(needed) {
                "service_healthy"
            } else {
                "service_completed_successfully"
            };
            assert_eq!(how["condition"], condition, "{name}");
            count += 1;
        }
    }
    assert!(count >= 4, "{count}");
}

#[test]
fn every_mounted_file_and_volume_exists() {
    let volumes = compose()["volumes"].clone();
    let mut files = 0;
    for (name, service) in services() {
        for mount in strings(&service["volumes"]) {
            let (source, _) = mount.split_once(':').expect("a mount has two ends");
            if let Some(file) = source.strip_prefix("./") {
                assert!(path(&format!("deploy/{file}")).is_file(), "{name}: {file}");
                assert!(mount.ends_with(":ro"), "{name}: {mount}");
                files += 1;
            } else {
                assert!(volumes.get(source).is_some(), "{name}: {source}");
            }
        }
    }
    assert_eq!(files, 5);
}

/// The addresses in the mounted files are those of services.
#[test]
fn grafana_and_prometheus_find_what_they_read() {
    let port = default_port("metrics-listen");
    let scrape: Value =
        serde_saphyr::from_str(&text("deploy/compose/prometheus.yml")).expect("it is YAML");
    let job = &scrape["scrape_configs"][0];
    assert_eq!(
        strings(&job["static_configs"][0]["targets"]),
        [format!("indexer:{port}")]
    );
    let indexer = &services()["indexer"];
    assert!(strings(&indexer["command"]).contains(&&*format!("[::]:{port}")));

    let source: Value =
        serde_saphyr::from_str(&text("deploy/compose/grafana-datasource.yml")).expect("it is YAML");
    assert_eq!(source["datasources"][0]["url"], "http://prometheus:9090");
    let provider: Value =
        serde_saphyr::from_str(&text("deploy/compose/grafana-dashboards.yml")).expect("it is YAML");
    let directory = provider["providers"][0]["options"]["path"]
        .as_str()
        .expect("a directory");
    let grafana = &services()["grafana"];
    let mounted = items(&grafana["volumes"]).iter().filter_map(Value::as_str);
    let dashboard = format!("./grafana/status-indexer.json:{directory}/");
    assert_eq!(
        mounted
            .filter(|mount| mount.starts_with(&dashboard))
            .count(),
        1
    );
}

#[test]
fn promtool_accepts_the_configuration_with_the_rules() {
    if !there("promtool") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory of our own");
    for file in [
        "deploy/compose/prometheus.yml",
        "deploy/prometheus/rules.yml",
    ] {
        let name = path(file);
        let name = name.file_name().expect("a file has a name");
        std::fs::copy(path(file), directory.path().join(name)).expect("it can be copied");
    }
    let output = Command::new("promtool")
        .args(["check", "config", "prometheus.yml"])
        .current_dir(directory.path())
        .output()
        .expect("it was there a moment ago");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("rules found"));
}

/// Podman Compose's reading of the file, with these variables; none, with a report, without it.
fn resolved(variables: &[(&str, &str)]) -> Option<Output> {
    let output = Command::new(tools()?.join("python"))
        .args(["-m", "podman_compose", "--file"])
        .arg(path(COMPOSE))
        .arg("config")
        .env_remove("POSTGRES_PASSWORD")
        .env_remove("GRAFANA_PASSWORD")
        .envs(variables.iter().copied())
        .output();
    Some(output.expect("it was there a moment ago"))
}

#[test]
fn podman_compose_accepts_the_file_and_requires_the_passwords() {
    let both = [
        ("POSTGRES_PASSWORD", "first"),
        ("GRAFANA_PASSWORD", "second"),
    ];
    let Some(output) = resolved(&both) else {
        return;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let printed = String::from_utf8_lossy(&output.stdout);
    let file: Value = serde_saphyr::from_str(&printed).expect("it prints YAML");
    let environment = |name: &str| file["services"][name]["environment"].clone();
    assert_eq!(environment("indexer")["MF_METADATA_DB_PSWD"], "first");
    assert_eq!(environment("database")["POSTGRES_PASSWORD"], "first");
    assert_eq!(
        environment("grafana")["GF_SECURITY_ADMIN_PASSWORD"],
        "second"
    );
    for missing in 0..both.len() {
        let (name, _) = both[missing];
        let output = resolved(&both[1 - missing..2 - missing]).expect("it was there");
        assert!(!output.status.success(), "{name}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(name),
            "{name}"
        );
    }
}
