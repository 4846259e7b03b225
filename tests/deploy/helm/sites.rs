//! Values of sites: every way of an installation that the chart supports.

use serde_json::{Value, json};

/// A site: what is special about it, and its values.
type Site = (&'static str, Value);

/// All sites.
pub(super) fn sites() -> Vec<Site> {
    [installations(), connections(), options()].concat()
}

/// The values of a site.
pub(super) fn values(site: &str) -> Value {
    let found = sites().into_iter().find(|(name, _)| *name == site);
    found.expect("it is one of the sites").1
}

fn installations() -> Vec<Site> {
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
                "metrics": {
                    "service": { "enabled": false },
                    "podMonitor": {
                        "enabled": true,
                        "scheme": "https",
                        "tlsConfig": {
                            "ca": { "secret": { "name": "metrics-tls", "key": "ca.crt" } },
                            "serverName": "status-indexer",
                        },
                        "authorization": { "credentials": { "name": "metrics-token", "key": "token" } },
                    },
                },
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
    ]
}

fn connections() -> Vec<Site> {
    vec![
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
    ]
}

fn options() -> Vec<Site> {
    vec![
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
