//! How the containers reach the database, and as which role.

use serde_json::Value;

use super::sites::values;
use super::{container, rendered};
use crate::deploy::kubernetes::{items, of_kind, one};
use crate::deploy::manifests::strings;

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
