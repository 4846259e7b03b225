//! The scrape configurations against a real Prometheus, where the machine has one.
//!
//! Owns the Prometheus of the tests, which the other tests of monitoring use too.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::docs::{path, text};
use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::requirement::left_out;
use testkit::wait::eventually_eq;

const TIMEOUT: Duration = Duration::from_secs(20);

pub(super) const STATIC: &str = "deploy/prometheus/scrape.yml";
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

/// A running Prometheus with data of its own.
pub(super) struct Prometheus {
    port: u16,
    client: reqwest::Client,
    _process: Child,
    _directory: TempDir,
}

impl Prometheus {
    /// Starts it with this configuration.
    pub(super) fn start(config: &Value) -> Self {
        let directory = tempfile::tempdir().expect("a directory of our own");
        Self::start_in(directory, config)
    }

    /// Starts it in this directory, which has the files that the configuration names.
    pub(super) fn start_in(directory: TempDir, config: &Value) -> Self {
        let file = directory.path().join("prometheus.yml");
        std::fs::write(&file, config.to_string()).expect("the directory is ours");
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let data = directory.path().join("data");
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("it was there a moment ago");
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(5))
            .build()
            .expect("a plain client needs nothing");
        Self {
            port,
            client,
            _process: process,
            _directory: directory,
        }
    }

    /// The series of a query at this moment.
    ///
    /// # Errors
    /// If Prometheus does not answer, or refuses the query: the reason.
    pub(super) async fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        let data = self.get("query", &[("query", query)]).await?;
        let series = data["result"].as_array();
        Ok(series.expect("a query has a list of series").clone())
    }

    /// The value of a query that has one series.
    pub(super) async fn value(&self, query: &str) -> Option<String> {
        let series = self.query(query).await.ok()?;
        Some(series.first()?["value"][1].as_str()?.to_owned())
    }

    /// The answer of another endpoint of its API.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub(super) async fn get(&self, path: &str, params: &[(&str, &str)]) -> Result<Value, String> {
        let url = format!("http://127.0.0.1:{}/api/v1/{path}", self.port);
        let request = self.client.get(url).query(params);
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let mut body: Value = answer.json().await.map_err(|error| error.to_string())?;
        if body["status"] == "success" {
            Ok(body["data"].take())
        } else {
            Err(body["error"].to_string())
        }
    }
}

/// A configuration with other targets, as JSON, which is YAML.
pub(super) fn configuration(name: &str, targets: &[String], interval: &str) -> Value {
    let mut config: Value = serde_saphyr::from_str(&text(name)).expect("it is YAML");
    // Relative to the directory of the configuration.
    for rules in config["rule_files"].as_array_mut().into_iter().flatten() {
        let file = path("deploy/prometheus").join(rules.as_str().expect("a file has a name"));
        *rules = json!(file);
    }
    let job = config["scrape_configs"][0]
        .as_object_mut()
        .expect("a job is a mapping");
    // Distributions build Prometheus without the discovery of Kubernetes.
    job.remove("kubernetes_sd_configs");
    job.insert("static_configs".into(), json!([{ "targets": targets }]));
    job.insert("scrape_interval".into(), json!(interval));
    job.insert("scrape_timeout".into(), json!(interval));
    config
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
    promtool(&["check", "config"], &path(STATIC)).await;
    let directory = tempfile::tempdir().expect("a directory of our own");
    let file = directory.path().join("kubernetes.yml");
    let config = configuration(KUBERNETES, &["localhost:9487".into()], "1s");
    std::fs::write(&file, config.to_string()).expect("the directory is ours");
    promtool(&["check", "config"], &file).await;
}

#[tokio::test]
async fn prometheus_scrapes_a_daemon_by_the_scrape_configuration() {
    if !there("prometheus") {
        return;
    }
    let database = Database::fresh().await;
    let daemon = Launch::on(&database).start().await;
    let target = daemon.address().await.to_string();
    let prometheus = Prometheus::start(&configuration(STATIC, &[target], "1s"));
    for query in [
        r#"up{job="status-indexer"}"#,
        r#"status_indexer_valid{job="status-indexer"}"#,
        r#"status_indexer_leader{job="status-indexer"}"#,
    ] {
        let what = format!("Prometheus knows {query}");
        eventually_eq(TIMEOUT, &what, Some("1".to_owned()), async || {
            prometheus.value(query).await
        })
        .await;
    }
}
