//! The sidecar that the chart makes, as a patch and as a template of another chart.

use std::fs;

use serde_json::{Value, json};

use super::sites::values;
use super::{CHART, rendered};
use crate::deploy::kubernetes::{ask, check, containers, items, of_kind, one};
use crate::deploy::manifests::{is_sidecar, ours, strings};
use crate::docs::{path, text};

/// The patch, applied as the notes say to a Deployment of the metadata service.
#[test]
fn the_sidecar_is_added_by_the_patch() {
    let Some((_, mut objects)) = rendered("sidecar") else {
        return;
    };
    assert!(of_kind(&objects, "Deployment").is_empty());
    let patch = &one(&objects, "ConfigMap")["data"]["patch.yaml"];
    let directory = tempfile::tempdir().expect("a directory of our own");
    let file = directory.path().join("patch.yaml");
    fs::write(&file, patch.as_str().expect("it is text")).expect("it is ours");
    let service = path("deploy/kubernetes/overlays/sidecar/metadata-service.yaml");
    let request = json!({ "command": "patch", "file": service, "patch_file": file });
    let patched = ask(&[request]).expect("kubectl is there").remove(0);
    sidecar_is_harmless(&patched);
    let added = containers(&patched["spec"]["template"]["spec"]).count();
    assert_eq!(added, 3, "the service's own containers remain");
    objects.push(patched);
    check("sidecar", &objects);
}

/// What can keep the metadata service from serving, as far as a manifest decides it.
pub(in crate::deploy) fn sidecar_is_harmless(deployment: &Value) {
    let pod = &deployment["spec"]["template"]["spec"];
    let deployments = [deployment.clone()];
    let ours = ours(&deployments);
    assert_eq!(ours.len(), 1, "no init container of the indexer can fail");
    let sidecar = ours[0].1;
    assert!(is_sidecar(sidecar));
    for absent in ["readinessProbe", "startupProbe", "lifecycle", "envFrom"] {
        assert!(sidecar[absent].is_null(), "{absent}");
    }
    let args = strings(&sidecar["args"]);
    assert!(
        args.windows(2).any(|pair| pair == ["--login-timeout", "0"]),
        "{args:?}"
    );
    for mount in items(&sidecar["volumeMounts"]) {
        let mut volumes = items(&pod["volumes"]).iter();
        let volume = volumes.find(|volume| volume["name"] == mount["name"]);
        let volume = volume.expect("a mount has a volume");
        assert_eq!(volume["secret"]["optional"], true, "{volume}");
    }
}

/// An umbrella chart with the indexer as a dependency pastes the sidecar as the documentation shows.
#[test]
fn an_umbrella_chart_can_include_the_sidecar() {
    let documented = text("docs/kubernetes.md");
    let (_, snippet) = documented
        .split_once("```yaml\n# templates/")
        .expect("a template is shown");
    let (_, snippet) = snippet.split_once('\n').expect("its first line names it");
    let (snippet, _) = snippet.split_once("```").expect("the block ends");

    let directory = tempfile::tempdir().expect("a directory of our own");
    let root = directory.path();
    let write = |name: &str, content: &str| {
        let file = root.join(name);
        fs::create_dir_all(file.parent().expect("it has a directory")).expect("it is ours");
        fs::write(file, content).expect("it is ours");
    };
    write(
        "Chart.yaml",
        "apiVersion: v2\nname: metaflow\nversion: 1.0.0\n",
    );
    write("values.yaml", "");
    let service = text("deploy/kubernetes/overlays/sidecar/metadata-service.yaml");
    let (head, tail) = service
        .split_once("      initContainers:\n")
        .expect("it has init containers");
    write("templates/service.yaml", &format!("{head}{snippet}{tail}"));
    fs::create_dir(root.join("charts")).expect("it is ours");
    std::os::unix::fs::symlink(path(CHART), root.join("charts/status-indexer"))
        .expect("it is ours");
    let values = json!({ "status-indexer": values("sidecar") });
    let request = json!({ "command": "render", "chart": root, "values": values });
    let Some(mut answers) = ask(&[request]) else {
        return;
    };
    let answer = answers.remove(0);
    assert!(answer["refused"].is_null(), "{}", answer["refused"]);
    let objects = items(&answer["objects"]);
    let service = of_kind(objects, "Deployment");
    assert_eq!(service.len(), 1);
    sidecar_is_harmless(service[0]);
    check("umbrella", objects);
}
