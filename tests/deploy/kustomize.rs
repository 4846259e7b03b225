//! The overlays for kustomize, built by kubectl.

use serde_json::{Value, json};

use super::helm::sidecar::sidecar_is_harmless;
use super::kubernetes::{ask, check, items, of_kind, one};
use super::manifests::{is_sidecar, ours, strings};
use crate::docs::path;

const OVERLAYS: &str = "deploy/kubernetes/overlays";

/// The objects of an overlay; none on a machine without kubectl.
fn built(overlay: &str) -> Option<Vec<Value>> {
    let directory = path(&format!("{OVERLAYS}/{overlay}"));
    let request = json!({ "command": "kustomize", "directory": directory });
    Some(items(&ask(&[request])?[0]).to_vec())
}

#[test]
fn each_overlay_builds_objects_that_kubernetes_and_the_binary_take() {
    let listed = std::fs::read_dir(path(OVERLAYS)).expect("the directory is there");
    let mut overlays = 0;
    for entry in listed {
        let name = entry.expect("it can be listed").file_name();
        let overlay = name.to_str().expect("a name of ASCII");
        let Some(objects) = built(overlay) else {
            return;
        };
        check(overlay, &objects);
        let ours = ours(&objects);
        assert_eq!(ours.len(), 1, "{overlay}");
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            ours[0].1["image"],
            format!("status-indexer:{version}"),
            "{overlay}"
        );
        overlays += 1;
    }
    assert_eq!(overlays, 2);
}

/// One command installs everything: the daemon migrates, and nothing else has to run before it.
#[test]
fn the_standalone_overlay_needs_only_the_secret() {
    let Some(objects) = built("standalone") else {
        return;
    };
    let (_, daemon) = ours(&objects)[0];
    assert!(strings(&daemon["args"]).contains(&"--migrate"));
    assert!(of_kind(&objects, "Job").is_empty());
    let text = one(&objects, "Deployment").to_string();
    for referred in ["configMapRef", "configMapKeyRef", "serviceAccountName"] {
        assert!(!text.contains(referred), "{referred}");
    }
    let secrets = text.matches("metadata-service-db").count();
    assert_eq!(secrets, 5, "four variables and the password");
}

#[test]
fn the_sidecar_cannot_keep_the_service_from_serving() {
    let Some(objects) = built("sidecar") else {
        return;
    };
    let deployment = one(&objects, "Deployment");
    sidecar_is_harmless(deployment);
    let init = items(&deployment["spec"]["template"]["spec"]["initContainers"]);
    let others: Vec<&Value> = init
        .iter()
        .filter(|container| !is_sidecar(container))
        .collect();
    assert_eq!(others.len(), 1, "the service's own migrations");
}
