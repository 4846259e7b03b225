//! The Helm chart, rendered by Helm's own SDK.
//!
//! Owns the sets of values that sites use. Promises that each of them renders objects which Kubernetes
//! and the binary take, that other values are refused, and that the chart's parts agree: values, schema,
//! README, versions and the files for Prometheus and Grafana.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::kubernetes::{ask, check, containers, items, of_kind, one};
use super::manifests::{is_sidecar, ours, strings};
use super::prometheus;
use crate::docs::{path, tables, text};

const CHART: &str = "deploy/helm/status-indexer";

const RULES: &str = "deploy/prometheus/rules.yml";

const DASHBOARD: &str = "deploy/grafana/status-indexer.json";

/// Values of sites, by what is special about them.
fn sites() -> Vec<(&'static str, Value)> {
    vec![
        ("default", json!({ "metadatadb": { "host": "db" } })),
        (
            "password",
            json!({ "metadatadb": { "host": "db", "password": "p\"'{{x" } }),
        ),
        (
            "monitoring",
            json!({
                "metadatadb": { "existingSecret": "metadata-service-db" },
                "metrics": {
                    "serviceMonitor": {
                        "enabled": true,
                        "labels": { "release": "prometheus" },
                        "scrapeTimeout": "10s",
                        "relabelings": [{ "targetLabel": "cluster", "replacement": "a" }],
                        "metricRelabelings": [{ "sourceLabels": ["__name__"], "regex": "process_.*", "action": "drop" }],
                    },
                    "prometheusRule": { "enabled": true, "labels": { "release": "prometheus" } },
                    "dashboard": { "enabled": true, "annotations": { "grafana_folder": "Metaflow" } },
                },
            }),
        ),
        (
            "pod monitor",
            json!({
                "metadatadb": { "host": "db" },
                "metrics": { "service": { "enabled": false }, "podMonitor": { "enabled": true } },
            }),
        ),
        (
            "hook job",
            json!({
                "metadatadb": { "host": "db", "existingSecret": "indexer" },
                "migration": { "mode": "job", "grantTo": "indexer", "existingSecret": "owner", "extraArgs": ["--ui"] },
            }),
        ),
        (
            "init container",
            json!({
                "metadatadb": { "existingSecret": "indexer" },
                "migration": { "mode": "initContainer", "grantTo": "indexer", "existingSecret": "owner", "wait": 600 },
            }),
        ),
        (
            "certificates",
            json!({
                "metadatadb": {
                    "host": "db", "port": 6432, "name": "metaflow", "user": "indexer", "schema": "meta",
                    "existingSecret": "indexer",
                    "secretKeys": { "password": "password" },
                    "ssl": { "mode": "verify-full", "existingSecret": "db-tls", "cert": "tls.crt", "key": "tls.key" },
                },
                "migration": { "mode": "job" },
            }),
        ),
        (
            "connection string",
            json!({
                "metadatadb": { "existingSecret": "cluster-app", "secretKeys": { "url": "uri" }, "passwordFile": false },
            }),
        ),
        (
            "password in a variable",
            json!({
                "metadatadb": { "host": "db", "existingSecret": "indexer", "user": "u", "passwordFile": false },
                "migration": { "mode": "none" },
            }),
        ),
        (
            "read API",
            json!({
                "metadatadb": { "host": "db" },
                "api": { "enabled": true, "pathPrefix": "/api" },
                "service": { "port": 80, "annotations": { "a": "b" } },
                "networkPolicy": {
                    "enabled": true,
                    "metricsFrom": [{ "namespaceSelector": { "matchLabels": { "name": "monitoring" } } }],
                    "egress": { "enabled": true, "databaseTo": [{ "ipBlock": { "cidr": "10.0.0.0/8" } }] },
                },
            }),
        ),
        (
            "scheduling",
            json!({
                "metadatadb": { "host": "db" },
                "replicaCount": 3,
                "fullnameOverride": "statuses",
                "image": { "repository": "registry.example.com/team/status-indexer", "digest": format!("sha256:{}", "a".repeat(64)) },
                "imagePullSecrets": [{ "name": "registry" }],
                "podAnnotations": { "a": "b" }, "podLabels": { "team": "platform" },
                "nodeSelector": { "disktype": "ssd" },
                "tolerations": [{ "key": "a", "operator": "Exists" }],
                "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                    { "matchExpressions": [{ "key": "a", "operator": "In", "values": ["b"] }] }] } } },
                "priorityClassName": "high",
                "serviceAccount": { "create": false, "name": "existing" },
                "podDisruptionBudget": { "maxUnavailable": "50%" },
                "topologySpreadConstraints": [],
                "extraArgs": ["--reconcile-rate", "100"],
                "env": [{ "name": "STATUS_INDEXER_LOG", "value": "debug" }],
                "envFrom": [{ "secretRef": { "name": "more" } }],
                "extraVolumes": [{ "name": "more", "emptyDir": {} }],
                "extraVolumeMounts": [{ "name": "more", "mountPath": "/more" }],
            }),
        ),
        (
            "sidecar",
            json!({
                "mode": "sidecar",
                "metadatadb": { "existingSecret": "metadata-service-db", "ssl": { "existingSecret": "db-tls", "mode": "verify-ca" } },
                "metrics": { "podMonitor": { "enabled": true }, "prometheusRule": { "enabled": true } },
                "sidecar": { "podLabels": { "app.kubernetes.io/name": "metadata-service" } },
            }),
        ),
    ]
}

fn values(site: &str) -> Value {
    let found = sites().into_iter().find(|(name, _)| *name == site);
    found.expect("it is one of the sites").1
}

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

/// The value of a variable: as it is, or as `SECRET/KEY`.
fn variable(container: &Value, name: &str) -> Option<String> {
    let variables = items(&container["env"]);
    let found = variables.iter().find(|variable| variable["name"] == name)?;
    let reference = &found["valueFrom"]["secretKeyRef"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    text(&found["value"]).or_else(|| {
        Some(format!(
            "{}/{}",
            text(&reference["name"])?,
            text(&reference["key"])?
        ))
    })
}

/// The Secret and the key whose value is in a file of a container.
fn file(objects: &[Value], kind: &str, name: &str, file: &str) -> Option<String> {
    let pod = &one(objects, kind)["spec"]["template"]["spec"];
    let mounts = items(&container(objects, kind, name)["volumeMounts"]);
    let mount = mounts.iter().find(|mount| {
        let place = mount["mountPath"].as_str().expect("a mount has a path");
        file.starts_with(&format!("{place}/"))
    })?;
    let rest = file.rsplit('/').next().expect("a path has a name");
    let volumes = items(&pod["volumes"]);
    let volume = volumes
        .iter()
        .find(|volume| volume["name"] == mount["name"])?;
    let secret = volume["secret"]["secretName"].as_str()?;
    let mapped = items(&volume["secret"]["items"])
        .iter()
        .find(|item| item["path"] == rest);
    let key = mapped.map_or(rest, |item| {
        item["key"].as_str().expect("an item has a key")
    });
    Some(format!("{secret}/{key}"))
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
fn the_parts_of_the_connection_come_from_the_values_and_else_from_the_secret() {
    let Some((_, objects)) = rendered("default") else {
        return;
    };
    let daemon = container(&objects, "Deployment", "status-indexer");
    let parts = ["HOST", "PORT", "NAME", "USER"];
    let of = |container: &Value| {
        parts.map(|part| variable(container, &format!("MF_METADATA_DB_{part}")).unwrap_or_default())
    };
    assert_eq!(of(daemon), ["db", "5432", "metaflow", "metaflow"]);
    assert_eq!(variable(daemon, "MF_METADATA_DB_PSWD_FILE"), None);
    assert_eq!(
        variable(daemon, "RUN_INACTIVE_CUTOFF_TIME").as_deref(),
        Some("360")
    );

    let (_, objects) = rendered("monitoring").expect("Helm is there");
    let daemon = container(&objects, "Deployment", "status-indexer");
    let keys = parts.map(|part| format!("metadata-service-db/MF_METADATA_DB_{part}"));
    assert_eq!(of(daemon), keys);
    let password = variable(daemon, "MF_METADATA_DB_PSWD_FILE").expect("the password is a file");
    let source = file(&objects, "Deployment", "status-indexer", &password);
    assert_eq!(
        source.as_deref(),
        Some("metadata-service-db/MF_METADATA_DB_PSWD")
    );

    let (_, objects) = rendered("password").expect("Helm is there");
    let secret = one(&objects, "Secret");
    let stored = &secret["stringData"]["MF_METADATA_DB_PSWD"];
    assert_eq!(*stored, values("password")["metadatadb"]["password"]);
    let source = file(&objects, "Deployment", "status-indexer", &password);
    let own = secret["metadata"]["name"].as_str().expect("it has a name");
    assert_eq!(source, Some(format!("{own}/MF_METADATA_DB_PSWD")));

    let (_, objects) = rendered("connection string").expect("Helm is there");
    let daemon = container(&objects, "Deployment", "status-indexer");
    assert_eq!(
        variable(daemon, "DATABASE_URL").as_deref(),
        Some("cluster-app/uri")
    );
    assert_eq!(of(daemon), [const { String::new() }; 4]);

    let (_, objects) = rendered("password in a variable").expect("Helm is there");
    let daemon = container(&objects, "Deployment", "status-indexer");
    let source = variable(daemon, "MF_METADATA_DB_PSWD");
    assert_eq!(source.as_deref(), Some("indexer/MF_METADATA_DB_PSWD"));

    let (_, objects) = rendered("certificates").expect("Helm is there");
    for (kind, name) in [("Deployment", "status-indexer"), ("Job", "migrate")] {
        let container = container(&objects, kind, name);
        assert_eq!(
            of(container),
            ["db", "6432", "metaflow", "indexer"],
            "{kind}"
        );
        assert_eq!(
            variable(container, "DB_SCHEMA_NAME").as_deref(),
            Some("meta")
        );
        for (part, key) in [
            ("ROOT_CERT", "ca.crt"),
            ("CERT", "tls.crt"),
            ("KEY", "tls.key"),
        ] {
            let place = variable(container, &format!("MF_METADATA_DB_SSL_{part}_PATH"));
            let source = file(&objects, kind, name, &place.expect("the path is set"));
            assert_eq!(source, Some(format!("db-tls/{key}")), "{kind}");
        }
    }
}

/// The owner migrates and grants; the daemon has a role of its own and does not migrate.
#[test]
fn a_separate_role_migrates() {
    for (site, kind) in [("hook job", "Job"), ("init container", "Deployment")] {
        let Some((_, objects)) = rendered(site) else {
            return;
        };
        let migration = container(&objects, kind, "migrate");
        let daemon = container(&objects, "Deployment", "status-indexer");
        let args = strings(&migration["args"]);
        assert_eq!(args[..3], ["migrate", "up", "--wait"], "{site}");
        assert!(
            args.windows(2)
                .any(|pair| pair == ["--grant-to", "indexer"]),
            "{site}"
        );
        assert!(!strings(&daemon["args"]).contains(&"--migrate"), "{site}");
        for (container, kind, name, secret) in [
            (migration, kind, "migrate", "owner"),
            (daemon, "Deployment", "status-indexer", "indexer"),
        ] {
            let user = variable(container, "MF_METADATA_DB_USER");
            assert_eq!(
                user,
                Some(format!("{secret}/MF_METADATA_DB_USER")),
                "{site}"
            );
            let place = variable(container, "MF_METADATA_DB_PSWD_FILE").expect("it is a file");
            let source = file(&objects, kind, name, &place);
            assert_eq!(
                source,
                Some(format!("{secret}/MF_METADATA_DB_PSWD")),
                "{site}"
            );
        }
        let host = variable(migration, "MF_METADATA_DB_HOST");
        assert_eq!(host, variable(daemon, "MF_METADATA_DB_HOST"), "{site}");
    }
}

/// A hook runs before the objects of the release exist.
#[test]
fn the_job_uses_nothing_of_the_chart_and_is_selected_by_nothing() {
    let Some((_, objects)) = rendered("hook job") else {
        return;
    };
    let job = one(&objects, "Job");
    let hook = &job["metadata"]["annotations"]["helm.sh/hook"];
    assert_eq!(*hook, "pre-install,pre-upgrade");
    let pod = &job["spec"]["template"];
    assert!(pod["spec"]["serviceAccountName"].is_null(), "{pod}");
    assert!(of_kind(&objects, "Secret").is_empty());
    let labels = &pod["metadata"]["labels"];
    for service in of_kind(&objects, "Service") {
        let selector = &service["spec"]["selector"];
        assert_ne!(
            selector["app.kubernetes.io/name"],
            labels["app.kubernetes.io/name"]
        );
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
pub(super) fn sidecar_is_harmless(deployment: &Value) {
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

/// The command of the notes that removes the database objects is one that kubectl and the binary take.
#[test]
fn the_notes_show_how_to_remove_the_column() {
    for site in ["hook job", "certificates", "monitoring"] {
        let Some((files, _)) = rendered(site) else {
            return;
        };
        let notes = files["status-indexer/templates/NOTES.txt"].as_str();
        let notes = notes.expect("the chart has notes");
        assert!(notes.contains("does not change the database"), "{notes}");
        let line = notes
            .lines()
            .find(|line| line.starts_with("{\"apiVersion\""));
        let line = line.unwrap_or_else(|| panic!("{site}: {notes}"));
        let overrides = line.strip_suffix('\'').expect("the argument is quoted");
        let mut pod: Value = serde_json::from_str(overrides).expect("it is JSON");
        assert_eq!(
            strings(&pod["spec"]["containers"][0]["args"]),
            ["migrate", "down"]
        );
        // `kubectl run` adds the policy.
        pod["spec"]["restartPolicy"] = json!("Never");
        let job = json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": { "name": "removal" },
            "spec": { "template": { "spec": pod["spec"] } },
        });
        check(site, &[job]);
    }
}

#[test]
fn the_readme_lists_the_values() {
    let source = text(&format!("{CHART}/values.yaml"));
    let defaults: Value = serde_saphyr::from_str(&source).expect("it is YAML");
    tables::check(&format!("{CHART}/README.md"), &table(&source, &defaults));
}

/// The table of all values, from the comments of `values.yaml`.
fn table(source: &str, defaults: &Value) -> String {
    let mut table = "| Value | Default | Meaning |\n|---|---|---|\n".to_owned();
    let mut open: Vec<(usize, &str)> = Vec::new();
    let mut comment: Option<String> = None;
    // The indentation of a value that is described as a whole.
    let mut whole: Option<usize> = None;
    for line in source.lines() {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        if whole.is_some_and(|whole| indent > whole) {
            continue;
        }
        if let Some(start) = content.strip_prefix("# -- ") {
            comment = Some(start.to_owned());
        } else if let Some(more) = content.strip_prefix("# ") {
            if let Some(comment) = &mut comment {
                *comment = format!("{comment} {more}");
            }
        } else if let Some((key, rest)) = content.split_once(':') {
            open.retain(|(outer, _)| *outer < indent);
            open.push((indent, key));
            let keys: Vec<&str> = open.iter().map(|(_, key)| *key).collect();
            whole = None;
            let Some(comment) = comment.take() else {
                assert!(rest.trim().is_empty(), "{keys:?} has no comment");
                continue;
            };
            whole = Some(indent);
            let default = defaults
                .pointer(&format!("/{}", keys.join("/")))
                .expect("the value is in the file");
            let row = format!("| `{}` | `{default}` | {comment} |\n", keys.join("."));
            table.push_str(&row);
        }
    }
    table
}

/// Helm itself reads the values as this test does.
#[test]
fn the_defaults_of_the_table_are_those_of_helm() {
    let Some(answers) = ask(&[json!({ "command": "defaults", "chart": path(CHART) })]) else {
        return;
    };
    let source = text(&format!("{CHART}/values.yaml"));
    let defaults: Value = serde_saphyr::from_str(&source).expect("it is YAML");
    assert_eq!(answers[0], defaults);
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
