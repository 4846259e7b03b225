//! The Dockerfile, the scrape configuration and the containers of all manifests against the binary.
//!
//! The manifests are those that Helm and kubectl produce: [`check`] is called for each set of them.

use clap::CommandFactory as _;
use serde_json::Value;
use status_indexer::cli::Cli;

use super::kubernetes::{containers, items};
use crate::docs::{flags, path, text};

/// Fails unless every container of the indexer among these objects fits the binary, and is locked down
/// and bounded.
pub(super) fn check(origin: &str, objects: &[Value]) {
    for (pod, container) in ours(objects) {
        takes_options_and_variables(origin, container);
        has_ports_and_probes(origin, container);
        is_locked_down(origin, pod, container);
    }
}

/// The containers of the indexer, each with its pod.
pub(super) fn ours(objects: &[Value]) -> Vec<(&Value, &Value)> {
    let pods = objects
        .iter()
        .map(|object| &object["spec"]["template"]["spec"]);
    pods.flat_map(|pod| containers(pod).map(move |container| (pod, container)))
        .filter(|(_, container)| {
            let image = container["image"].as_str().unwrap_or_default();
            image.contains("status-indexer")
        })
        .collect()
}

/// Whether a container is a native sidecar.
pub(super) fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

pub(super) fn strings(list: &Value) -> Vec<&str> {
    let items = list.as_array().map_or(&[][..], Vec::as_slice);
    items.iter().filter_map(Value::as_str).collect()
}

/// The default port of a listener of the daemon.
pub(super) fn default_port(flag: &str) -> i64 {
    let cli = Cli::command();
    let flag = flags(&cli)
        .into_iter()
        .find(|arg| arg.get_long() == Some(flag))
        .expect("the daemon listens");
    let default = flag.get_default_values()[0].to_string_lossy().into_owned();
    let (_, port) = default.rsplit_once(':').expect("an address has a port");
    port.parse().expect("a port is a number")
}

/// Its arguments and its variables are those of the binary.
pub(super) fn takes_options_and_variables(origin: &str, container: &Value) {
    let cli = Cli::command();
    let variables: Vec<_> = flags(&cli)
        .into_iter()
        .filter_map(|arg| Some(arg.get_env()?.to_string_lossy().into_owned()))
        .collect();
    let args = strings(&container["args"]);
    assert!(!args.is_empty(), "{origin}: no command");
    Cli::command()
        .mut_args(|arg| arg.env(None::<&str>))
        .try_get_matches_from(std::iter::once("status-indexer").chain(args))
        .unwrap_or_else(|error| panic!("{origin}: {error}"));
    for variable in items(&container["env"]) {
        let name = variable["name"].as_str().expect("a variable has a name");
        let known = variables.iter().any(|known| known == name);
        assert!(known, "{origin}: {name}");
        // A missing Secret would keep the containers after a sidecar from starting.
        let reference = &variable["valueFrom"]["secretKeyRef"];
        if is_sidecar(container) && !reference.is_null() {
            assert_eq!(reference["optional"], true, "{origin}: {name}");
        }
    }
}

/// The daemon listens where its ports and probes say.
fn has_ports_and_probes(origin: &str, container: &Value) {
    let args = strings(&container["args"]);
    if args[0] != "run" {
        return;
    }
    let port = default_port("metrics-listen");
    assert!(args.contains(&&*format!("[::]:{port}")), "{origin}");
    let declared = &container["ports"][0];
    assert_eq!(declared["containerPort"], port, "{origin}");
    let probes = [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")];
    for (kind, route) in probes {
        let probe = &container[kind]["httpGet"];
        // A sidecar's readiness would be that of the metadata service, and a startup probe would delay it.
        if kind == "readinessProbe" && is_sidecar(container) {
            assert!(container[kind].is_null(), "{origin}");
            continue;
        }
        assert_eq!(probe["path"], route, "{origin}");
        assert_eq!(probe["port"], declared["name"], "{origin}");
    }
    assert!(container["startupProbe"].is_null(), "{origin}");
}

/// It runs without privileges, and its memory is bounded.
fn is_locked_down(origin: &str, pod: &Value, container: &Value) {
    let own = &container["securityContext"];
    let effective = |field: &str| {
        let value = &own[field];
        // The pod of a sidecar belongs to another chart.
        if value.is_null() && !is_sidecar(container) {
            pod["securityContext"][field].clone()
        } else {
            value.clone()
        }
    };
    assert_eq!(effective("runAsNonRoot"), true, "{origin}");
    assert_eq!(effective("runAsUser"), 65532, "{origin}");
    assert_eq!(effective("readOnlyRootFilesystem"), true, "{origin}");
    assert_eq!(effective("allowPrivilegeEscalation"), false, "{origin}");
    assert_eq!(
        effective("seccompProfile")["type"],
        "RuntimeDefault",
        "{origin}"
    );
    assert_eq!(strings(&own["capabilities"]["drop"]), ["ALL"], "{origin}");
    let memory = &container["resources"]["limits"]["memory"];
    assert!(memory.is_string(), "{origin}");
    if !is_sidecar(container) {
        assert_eq!(pod["automountServiceAccountToken"], false, "{origin}");
        assert_eq!(pod["enableServiceLinks"], false, "{origin}");
    }
}

#[test]
fn the_scrape_configuration_has_the_port_of_the_metrics() {
    let port = default_port("metrics-listen");
    let parsed: Value =
        serde_saphyr::from_str(&text("deploy/prometheus/scrape.yml")).expect("it is YAML");
    let jobs = items(&parsed["scrape_configs"]);
    assert!(!jobs.is_empty());
    for job in jobs {
        let targets = strings(&job["static_configs"][0]["targets"]);
        assert!(!targets.is_empty());
        for target in targets {
            assert!(target.ends_with(&format!(":{port}")), "{target}");
        }
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
    let version = env!("CARGO_PKG_VERSION");
    assert!(dockerfile.contains(&format!("\nARG VERSION={version}\n")));
    let toolchain = env!("CARGO_PKG_RUST_VERSION");
    assert!(
        dockerfile.contains(&format!(
            "FROM --platform=$BUILDPLATFORM rust:{toolchain}-slim-bookworm"
        )),
        "the image is built with Rust {toolchain}"
    );
}
