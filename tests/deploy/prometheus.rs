//! The scrape configurations against a real Prometheus, where the machine has one.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::docs::{path, text};
use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::drift::eventually_status;
use testkit::requirement::left_out;
use testkit::wait::eventually_eq;

const TIMEOUT: Duration = Duration::from_secs(20);

const STATIC: &str = "deploy/prometheus/scrape.yml";
const KUBERNETES: &str = "deploy/prometheus/scrape-kubernetes.yml";

/// Whether the machine has the program; `.ci/setup test` brings it.
pub(super) fn there(program: &str) -> bool {
    let answer = std::process::Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if answer.is_err() {
        left_out(&format!("needs {program}"));
    }
    answer.is_ok()
}

/// A configuration with other targets, as JSON, which is YAML.
fn configuration(name: &str, target: &str, interval: &str) -> Value {
    let mut config: Value = serde_saphyr::from_str(&text(name)).expect("it is YAML");
    let job = config["scrape_configs"][0]
        .as_object_mut()
        .expect("a job is a mapping");
    // Distributions build Prometheus without the discovery of Kubernetes.
    job.remove("kubernetes_sd_configs");
    job.insert("static_configs".into(), json!([{ "targets": [target] }]));
    job.insert("scrape_interval".into(), json!(interval));
    job.insert("scrape_timeout".into(), json!(interval));
    config
}

async fn check(file: &Path) {
    promtool(&["check", "config"], file).await;
}

/// Runs promtool on a file, which must succeed. Paths in the file are relative to it.
pub(super) async fn promtool(command: &[&str], file: &Path) {
    let output = Command::new("promtool")
        .args(command)
        .arg(file)
        .output()
        .await
        .expect("it was there a moment ago");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn promtool_accepts_the_scrape_configurations() {
    if !there("promtool") {
        return;
    }
    check(&path(STATIC)).await;
    let directory = tempfile::tempdir().expect("a directory of our own");
    let file = directory.path().join("kubernetes.yml");
    let config = configuration(KUBERNETES, "localhost:9487", "1s").to_string();
    std::fs::write(&file, config).expect("the directory is ours");
    check(&file).await;
}

#[tokio::test]
async fn prometheus_scrapes_a_daemon_by_the_scrape_configuration() {
    if !there("prometheus") {
        return;
    }
    let database = Database::fresh().await;
    let daemon = Launch::on(&database).start().await;
    let directory = tempfile::tempdir().expect("a directory of our own");
    let file = directory.path().join("prometheus.yml");
    let target = daemon.address().await.to_string();
    let config = configuration(STATIC, &target, "1s").to_string();
    std::fs::write(&file, config).expect("the directory is ours");

    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port();
    let _prometheus = Command::new("prometheus")
        .arg(format!("--config.file={}", file.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            directory.path().join("data").display()
        ))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("it was there a moment ago");

    for query in [
        r#"up{job="status-indexer"}"#,
        r#"status_indexer_valid{job="status-indexer"}"#,
        r#"status_indexer_leader{job="status-indexer"}"#,
    ] {
        let what = format!("Prometheus knows {query}");
        eventually_eq(TIMEOUT, &what, Some("1".to_owned()), async || {
            ask(port, query).await
        })
        .await;
    }
}

/// The value of a query that has one series.
async fn ask(port: u16, query: &str) -> Option<String> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(2))
        .build()
        .expect("a plain client needs nothing");
    let answer: Value = client
        .get(format!("http://127.0.0.1:{port}/api/v1/query"))
        .query(&[("query", query)])
        .send()
        .await
        .ok()?
        .json()
        .await
        .ok()?;
    let value = answer["data"]["result"][0]["value"][1].as_str()?;
    Some(value.to_owned())
}

/// The alert on drift that the documentation recommends fires at the first drift ever: the series
/// exists before it.
#[tokio::test]
async fn the_alert_on_drift_fires_at_the_first_drift() {
    if !there("promtool") {
        return;
    }
    const SERIES: &str = r#"status_indexer_drift_total{cause="evidence"}"#;
    let documented = text("docs/metrics.md");
    let expression = documented
        .split('`')
        .find(|code| code.starts_with("increase(status_indexer_drift_total"))
        .expect("the documentation recommends an alert on drift");

    let database = Database::fresh().await;
    let writer = database.writer().await;
    let daemon = Launch::on(&database)
        .arg("--reconcile-interval=1")
        .arg("--reconcile-rate=100000")
        .start()
        .await;
    daemon.ready().await;
    let before = daemon.metric(SERIES).await;
    let now = writer.now_ms().await;
    writer.insert_flow("F").await;
    let id = writer.insert_run("F", Some(now / 1000)).await;
    writer.attempt_ok("F", id, "True", now).await;
    eventually_status(&writer, "F", id, "completed").await;
    writer
        .client()
        .batch_execute("update runs_v3 set run_status = 'failed'")
        .await
        .expect("valid SQL");
    eventually_eq(TIMEOUT, "the drift is counted", Some(1.0), async || {
        daemon.metric(SERIES).await
    })
    .await;

    // The samples of ten minutes: five from before the drift, five from after it.
    let before = before.map_or_else(|| "_".to_owned(), |value| value.to_string());
    let directory = tempfile::tempdir().expect("a directory of our own");
    let rules = json!({ "groups": [{ "name": "drift", "rules": [{ "alert": "Drift", "expr": expression }] }] });
    let tests = json!({
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": [{ "series": SERIES, "values": format!("{before}x5 1x5") }],
            "alert_rule_test": [
                { "eval_time": "5m", "alertname": "Drift", "exp_alerts": [] },
                { "eval_time": "7m", "alertname": "Drift", "exp_alerts": [{ "exp_labels": { "cause": "evidence" } }] },
            ],
        }],
    });
    for (name, content) in [("rules.yml", rules), ("tests.yml", tests)] {
        std::fs::write(directory.path().join(name), content.to_string()).expect("it is ours");
    }
    promtool(&["test", "rules"], &directory.path().join("tests.yml")).await;
}
