//! Objects of Kubernetes as Helm and kubectl produce them, and what must hold for all of them.
//!
//! Owns the requests to `kubernetes.py`, which calls Helm's SDK, kubectl and the schemas of Kubernetes.
//! [`check`] validates objects as an API server would, and their references to each other, which it
//! would not. Called by the tests of the chart and of the overlays.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{custom_resources, manifests};
use crate::docs::path;
use testkit::requirement::left_out;

/// The oldest version with native sidecars, and the newest one that the schemas know.
pub(super) const VERSIONS: [&str; 2] = ["1.29", "1.37"];

/// The directory of `python` and `kubectl`, which `.ci/setup test` brings. None, with a report, on a
/// machine without them.
pub(super) fn tools() -> Option<PathBuf> {
    let output = Command::new(path(".ci/python-tools"))
        .arg("--cached")
        .output();
    let found = output.ok().filter(|output| output.status.success());
    let Some(found) = found else {
        left_out("needs Helm and kubectl: .ci/python-tools installs them");
        return None;
    };
    let directory = String::from_utf8(found.stdout).expect("a path of ASCII");
    Some(PathBuf::from(directory.trim()))
}

/// The answers to some requests; none, with a report, on a machine without the programs.
pub(super) fn ask(requests: &[Value]) -> Option<Vec<Value>> {
    let mut child = Command::new(tools()?.join("python"))
        .arg(path("tests/deploy/kubernetes.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it was there a moment ago");
    let text = serde_json::to_vec(requests).expect("values are JSON");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(&text).expect("it reads its requests");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let answers: Vec<Value> = serde_json::from_slice(&output.stdout).expect("it answers in JSON");
    assert_eq!(answers.len(), requests.len());
    Some(answers)
}

/// The items of a list; none if it is missing.
pub(super) fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

/// The objects of one kind.
pub(super) fn of_kind<'o>(objects: &'o [Value], kind: &str) -> Vec<&'o Value> {
    objects
        .iter()
        .filter(|object| object["kind"] == kind)
        .collect()
}

/// The one object of a kind.
pub(super) fn one<'o>(objects: &'o [Value], kind: &str) -> &'o Value {
    let found = of_kind(objects, kind);
    assert_eq!(found.len(), 1, "{kind}: {objects:?}");
    found[0]
}

/// Everything that must hold for a set of objects: `origin` names it in messages.
pub(super) fn check(origin: &str, objects: &[Value]) {
    assert!(!objects.is_empty(), "{origin}: nothing is rendered");
    schemas(origin, objects);
    names(origin, objects);
    for pod in pods(objects) {
        mounts(origin, pod);
    }
    selectors(origin, objects);
    manifests::check(origin, objects);
}

fn schemas(origin: &str, objects: &[Value]) {
    let requests: Vec<Value> = VERSIONS
        .iter()
        .flat_map(|version| {
            objects.iter().map(move |object| {
                json!({ "command": "validate", "object": object, "version": version })
            })
        })
        .collect();
    let answers = ask(&requests).expect("the caller had the programs");
    for (request, answer) in requests.iter().zip(answers) {
        let object = &request["object"];
        let (kind, version) = (&object["kind"], &request["version"]);
        if answer == "unknown kind" {
            custom_resources::check(origin, object);
        } else {
            assert!(answer.is_null(), "{origin}: {kind} in {version}: {answer}");
        }
    }
}

/// No two objects have the same kind and name.
fn names(origin: &str, objects: &[Value]) {
    let mut seen = Vec::new();
    for object in objects {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        assert!((1..=63).contains(&name.len()), "{origin}: {name:?}");
        let key = (&object["kind"], name);
        assert!(!seen.contains(&key), "{origin}: {key:?} occurs twice");
        seen.push(key);
    }
}

/// The templates of pods, with their labels.
fn templates(objects: &[Value]) -> impl Iterator<Item = &Value> {
    let templates = objects.iter().map(|object| &object["spec"]["template"]);
    templates.filter(|template| template["spec"].is_object())
}

fn pods(objects: &[Value]) -> impl Iterator<Item = &Value> {
    templates(objects).map(|template| &template["spec"])
}

/// All containers of a pod.
pub(super) fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    items(&pod["initContainers"])
        .iter()
        .chain(items(&pod["containers"]))
}

/// Each mount has a volume, each volume a mount; names, variables and ports occur once.
fn mounts(origin: &str, pod: &Value) {
    let unique = |what: &str, names: Vec<&Value>| {
        for name in &names {
            let count = names.iter().filter(|other| other == &name).count();
            assert_eq!(count, 1, "{origin}: {what} {name}");
        }
    };
    let volumes: Vec<&Value> = items(&pod["volumes"]).iter().map(|v| &v["name"]).collect();
    let mut mounted = Vec::new();
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for container in containers(pod) {
        names.push(&container["name"]);
        ports.extend(
            items(&container["ports"])
                .iter()
                .map(|port| &port["containerPort"]),
        );
        let env = items(&container["env"])
            .iter()
            .map(|variable| &variable["name"]);
        unique("variable", env.collect());
        let mounts = items(&container["volumeMounts"]);
        unique(
            "path",
            mounts.iter().map(|mount| &mount["mountPath"]).collect(),
        );
        mounted.extend(mounts.iter().map(|mount| &mount["name"]));
    }
    unique("container", names);
    unique("port", ports);
    unique("volume", volumes.clone());
    for volume in &mounted {
        assert!(volumes.contains(volume), "{origin}: no volume {volume}");
    }
    for volume in &volumes {
        assert!(
            mounted.contains(volume),
            "{origin}: {volume} is not mounted"
        );
    }
}

/// Whether all labels of a selector are among these.
fn selects(selector: &Value, labels: &Value) -> bool {
    let wanted = selector.as_object().expect("a selector has labels");
    !wanted.is_empty() && wanted.iter().all(|(name, value)| &labels[name] == value)
}

/// Whatever selects pods or Services selects some of this set, and the ports that it names exist.
fn selectors(origin: &str, objects: &[Value]) {
    let by_labels = |selector: &Value| {
        let found = templates(objects).find(|pod| selects(selector, &pod["metadata"]["labels"]));
        found.unwrap_or_else(|| panic!("{origin}: {selector} selects no pod"))
    };
    let has_port = |pod: &Value, name: &Value| {
        let found = containers(&pod["spec"]).flat_map(|container| items(&container["ports"]));
        let known = found.map(|port| &port["name"]).any(|port| port == name);
        assert!(known, "{origin}: no port {name}");
    };
    for object in objects {
        let spec = &object["spec"];
        match object["kind"].as_str().expect("an object has a kind") {
            "Deployment" | "PodDisruptionBudget" => {
                by_labels(&spec["selector"]["matchLabels"]);
            }
            "NetworkPolicy" => {
                let pod = by_labels(&spec["podSelector"]["matchLabels"]);
                for rule in items(&spec["ingress"]) {
                    has_port(pod, &rule["ports"][0]["port"]);
                }
            }
            "Service" => {
                let pod = by_labels(&spec["selector"]);
                has_port(pod, &spec["ports"][0]["targetPort"]);
            }
            "ServiceMonitor" => {
                let wanted = &spec["selector"]["matchLabels"];
                let services = of_kind(objects, "Service").into_iter();
                let found: Vec<&Value> = services
                    .filter(|service| selects(wanted, &service["metadata"]["labels"]))
                    .collect();
                assert_eq!(found.len(), 1, "{origin}: the Services of {wanted}");
                assert_eq!(
                    found[0]["spec"]["ports"][0]["name"],
                    spec["endpoints"][0]["port"]
                );
            }
            "PodMonitor" if !of_kind(objects, "Deployment").is_empty() => {
                let pod = by_labels(&spec["selector"]["matchLabels"]);
                has_port(pod, &spec["podMetricsEndpoints"][0]["port"]);
            }
            _ => {}
        }
    }
}
