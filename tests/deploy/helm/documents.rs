//! The documents of the chart: README, notes, and the examples of the manual.

use serde_json::{Value, json};

use super::{CHART, render, rendered};
use crate::deploy::kubernetes::{ask, check};
use crate::deploy::manifests::strings;
use crate::docs::{path, tables, text};

/// The values in the documents, as files and as options of a command.
#[test]
fn the_values_that_the_documents_show_are_taken() {
    let documents = [
        "docs/kubernetes.md".to_owned(),
        format!("{CHART}/README.md"),
    ];
    let mut shown: Vec<Value> = Vec::new();
    for document in documents.map(|name| text(&name)) {
        for block in document.split("```yaml\nmetadatadb:").skip(1) {
            let (block, _) = block.split_once("```").expect("the block ends");
            let values = format!("metadatadb:{block}");
            shown.push(serde_saphyr::from_str(&values).expect("it is YAML"));
        }
        for block in document.split("```sh\nhelm").skip(1) {
            let (block, _) = block.split_once("```").expect("the block ends");
            let options = block.split("--set ").skip(1);
            let mut values = json!({});
            for option in options.filter_map(|option| option.split_whitespace().next()) {
                let (path, value) = option.split_once('=').expect("a value is set");
                let mut place = &mut values;
                for key in path.split('.') {
                    place = &mut place[key];
                }
                *place = json!(value);
            }
            shown.push(values);
        }
    }
    assert!(shown.len() >= 6, "{shown:?}");
    for values in &mut shown {
        let database = &mut values["metadatadb"];
        // Some show only what they are about.
        if database["existingSecret"].is_null() {
            database["host"] = json!("db");
        }
    }
    let requests: Vec<Value> = shown.iter().map(render).collect();
    let Some(answers) = ask(&requests) else {
        return;
    };
    for (values, answer) in shown.iter().zip(answers) {
        assert!(
            answer["refused"].is_null(),
            "{values}: {}",
            answer["refused"]
        );
    }
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
