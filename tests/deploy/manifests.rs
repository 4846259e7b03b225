//! The Dockerfile and the manifests of Kubernetes and Prometheus against the binary.

use clap::CommandFactory as _;
use serde_json::Value;
use status_indexer::cli::Cli;

use crate::docs::{flags, path, text};

/// Every document of every YAML file that is deployed.
fn documents() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for directory in ["deploy/kubernetes", "deploy/prometheus"] {
        for entry in std::fs::read_dir(path(directory)).expect("the directory is there") {
            let name = entry.expect("it can be listed").file_name();
            let name = format!("{directory}/{}", name.to_string_lossy());
            let parsed: Vec<Value> = serde_saphyr::from_multiple(&text(&name))
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(!parsed.is_empty(), "{name} is empty");
            found.extend(parsed.into_iter().map(|document| (name.clone(), document)));
        }
    }
    found
}

/// Our containers and init containers, each with its pod.
fn containers() -> Vec<(String, Value, Value)> {
    let mut found = Vec::new();
    for (name, document) in documents() {
        let pod = &document["spec"]["template"]["spec"];
        for list in ["initContainers", "containers"] {
            for container in pod[list].as_array().into_iter().flatten() {
                let image = container["image"].as_str().unwrap_or_default();
                if image.starts_with("status-indexer:") {
                    found.push((name.clone(), pod.clone(), container.clone()));
                }
            }
        }
    }
    assert_eq!(found.len(), 4, "migrate and run, in two manifests");
    found
}

fn strings(list: &Value) -> Vec<&str> {
    let items = list.as_array().map_or(&[][..], Vec::as_slice);
    items.iter().filter_map(Value::as_str).collect()
}

/// The default port of the daemon's metrics.
fn default_port() -> i64 {
    let cli = Cli::command();
    let flag = flags(&cli)
        .into_iter()
        .find(|arg| arg.get_long() == Some("metrics-listen"))
        .expect("the daemon listens");
    let default = flag.get_default_values()[0].to_string_lossy().into_owned();
    let (_, port) = default.rsplit_once(':').expect("an address has a port");
    port.parse().expect("a port is a number")
}

#[test]
fn the_manifests_use_only_options_and_variables_of_the_binary() {
    let cli = Cli::command();
    let variables: Vec<_> = flags(&cli)
        .into_iter()
        .filter_map(|arg| Some(arg.get_env()?.to_string_lossy().into_owned()))
        .collect();
    for (name, _, container) in containers() {
        let args = strings(&container["args"]);
        assert!(!args.is_empty(), "{name}: no command");
        Cli::command()
            .mut_args(|arg| arg.env(None::<&str>))
            .try_get_matches_from(std::iter::once("status-indexer").chain(args))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        for variable in container["env"].as_array().into_iter().flatten() {
            let variable = variable["name"].as_str().expect("a variable has a name");
            assert!(
                variables.iter().any(|known| known == variable),
                "{name}: {variable}"
            );
        }
        assert_eq!(
            container["envFrom"][0]["secretRef"]["name"], "metadata-service-db",
            "{name}"
        );
    }
}

#[test]
fn ports_and_probes_agree_with_the_daemons_listeners() {
    let port = default_port();
    for (name, _, container) in containers() {
        let args = strings(&container["args"]);
        if args[0] != "run" {
            continue;
        }
        assert!(args.contains(&&*format!("[::]:{port}")), "{name}");
        let declared = &container["ports"][0];
        assert_eq!(declared["containerPort"], port, "{name}");
        let probes = [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")];
        for (kind, route) in probes {
            let probe = &container[kind]["httpGet"];
            // A sidecar's readiness would be that of the metadata service.
            let sidecar = container["restartPolicy"] == "Always";
            if kind == "readinessProbe" && sidecar {
                assert!(container[kind].is_null(), "{name}");
                assert!(container["startupProbe"].is_null(), "{name}");
                continue;
            }
            assert_eq!(probe["path"], route, "{name}");
            assert_eq!(probe["port"], declared["name"], "{name}");
        }
    }
    for (name, document) in documents() {
        if document["kind"] == "Service" {
            assert_eq!(document["spec"]["ports"][0]["port"], port, "{name}");
        }
        for job in document["scrape_configs"].as_array().into_iter().flatten() {
            for target in strings(&job["static_configs"][0]["targets"]) {
                assert!(target.ends_with(&format!(":{port}")), "{name}");
            }
        }
    }
}

#[test]
fn every_container_of_ours_is_locked_down_and_bounded() {
    for (name, pod, container) in containers() {
        let own = &container["securityContext"];
        let effective = |field: &str| {
            let value = &own[field];
            if value.is_null() {
                pod["securityContext"][field].clone()
            } else {
                value.clone()
            }
        };
        assert_eq!(effective("runAsNonRoot"), true, "{name}");
        assert_eq!(effective("runAsUser"), 65532, "{name}");
        assert_eq!(effective("readOnlyRootFilesystem"), true, "{name}");
        assert_eq!(effective("allowPrivilegeEscalation"), false, "{name}");
        assert_eq!(strings(&own["capabilities"]["drop"]), ["ALL"], "{name}");
        assert!(
            container["resources"]["limits"]["memory"].is_string(),
            "{name}"
        );
    }
}

#[test]
fn the_image_is_built_from_existing_files() {
    let dockerfile = text("deploy/Dockerfile");
    let ignored = text(".dockerignore");
    let mut copied = Vec::new();
    for line in dockerfile.lines().filter(|line| line.starts_with("COPY ")) {
        let words: Vec<_> = line.split_whitespace().skip(1).collect();
        if words[0].starts_with("--from=") {
            continue;
        }
        copied.extend(words[..words.len() - 1].iter().map(ToString::to_string));
    }
    for source in &copied {
        assert!(path(source).exists(), "{source}");
        assert!(
            ignored.lines().any(|line| line == format!("!{source}")),
            "{source}"
        );
    }
    // The sources, what they embed, and the manifests of the workspace.
    for needed in [
        "Cargo.toml",
        "Cargo.lock",
        "build.rs",
        "src",
        "migrations",
        "crates",
    ] {
        assert!(copied.iter().any(|source| source == needed), "{needed}");
    }
    let toolchain = env!("CARGO_PKG_RUST_VERSION");
    assert!(
        dockerfile.contains(&format!("FROM rust:{toolchain}-slim-bookworm")),
        "the image is built with Rust {toolchain}"
    );
}
