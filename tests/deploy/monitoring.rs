//! Rules and dashboard against real daemons under load, scraped by a real Prometheus.
//!
//! Promises that every series that they select exists, that every query gives a result, that no alert
//! fires while all is well, and that faults raise their alerts, from the first one on.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::api::access::certificates;
use crate::connect::server::Certificates;

use super::dashboard::{queries, variables};
use super::prometheus::{Prometheus, configuration, there};
use super::rules::{rules, selectors};
use testkit::daemon::{Daemon, Launch};
use testkit::database::Database;
use testkit::drift::eventually_status;
use testkit::random_writers::RandomWriters;
use testkit::seed::Seed;
use testkit::wait::{eventually, eventually_eq, eventually_some};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Panels that show nothing while all is well: no alert fires.
const MAY_BE_EMPTY: [&str; 1] = ["Alerts"];

/// Panels whose values need events that a short test may not have: until a deadline has passed, or a
/// request was sent within the window, quantiles and shares are not a number.
const MAY_LACK_A_NUMBER: [&str; 3] = [
    "Time from a deadline to the status",
    "Share of errors",
    "Time to the answer of a listing",
];

/// Alerts that the load may raise: it contains values that are not booleans, and a busy machine is slow.
const MAY_BE_RAISED: [&str; 5] = [
    "StatusIndexerInvalidEvidence",
    "StatusIndexerEventsLateFast",
    "StatusIndexerEventsLateSlow",
    "StatusIndexerDeadlinesLate",
    "StatusIndexerReadApiSlow",
];

/// A query as Grafana sends it, with all installations chosen.
fn substituted(query: &str) -> String {
    query
        .replace("$__rate_interval", "10s")
        .replace("$__range", "10m")
        .replace("$job", "status-indexer")
        .replace("$namespace", ".*")
        .replace("$instance", ".*")
}

/// Two daemons on a database, and the Prometheus that scrapes them every second. The read API of the second
/// daemon uses TLS, so that its certificate has a series.
struct Site {
    database: Database,
    daemons: [Daemon; 2],
    prometheus: Prometheus,
    /// Their files are read again and again.
    _certificates: Certificates,
}

impl Site {
    async fn start() -> Self {
        let database = Database::fresh().await;
        let launch = Launch::on(&database)
            .env("RUN_INACTIVE_CUTOFF_TIME", "8")
            .arg("--reconcile-interval=1")
            .arg("--reconcile-rate=100000");
        let all = certificates(&["api"]).await;
        let path = |name: &str| all.path(name).display().to_string();
        let with_tls = launch
            .clone()
            .env("STATUS_INDEXER_HTTP_TLS_CERT", &path("api.crt"))
            .env("STATUS_INDEXER_HTTP_TLS_KEY", &path("api.key"));
        let daemons = [launch.start().await, with_tls.start().await];
        let mut targets = Vec::new();
        for daemon in &daemons {
            targets.push(daemon.address().await.to_string());
        }
        let mut config = configuration("deploy/prometheus/scrape.yml", &targets, "1s");
        config["global"] = serde_json::json!({ "evaluation_interval": "1s" });
        let site = Self {
            database,
            daemons,
            prometheus: Prometheus::start(&config),
            _certificates: all,
        };
        eventually_eq(TIMEOUT, "both are scraped", 2, async || {
            site.count("status_indexer_up == 1").await
        })
        .await;
        site
    }

    /// How many series a query has; none if it fails.
    async fn count(&self, query: &str) -> usize {
        self.prometheus.query(query).await.map_or(0, |s| s.len())
    }

    /// The alerts that are pending or fire, with their labels and annotations.
    async fn alerts(&self) -> Vec<Value> {
        let data = self.prometheus.get("alerts", &[]).await;
        let data = data.expect("Prometheus answers");
        data["alerts"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until an alert is pending or fires.
    async fn eventually_raised(&self, name: &str) -> Value {
        let raised = async || {
            let alerts = self.alerts().await;
            let mut alerts = alerts.into_iter();
            alerts.find(|alert| alert["labels"]["alertname"] == name)
        };
        eventually_some(TIMEOUT, &format!("{name} is raised"), raised).await
    }

    async fn eventually_without_alerts(&self) {
        eventually_eq(
            TIMEOUT,
            "no alert is raised",
            Vec::<Value>::new(),
            async || self.alerts().await,
        )
        .await;
    }
}

/// Asks for a listing, as a client of the read API does.
async fn list_runs(daemon: &Daemon) {
    let url = format!("http://{}/flows/F/runs?status=failed", daemon.api().await);
    let client = reqwest::Client::builder().no_proxy().build();
    let client = client.expect("a plain client needs nothing");
    let answer = client.get(url).send().await.expect("it answers");
    assert!(answer.status().is_success(), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_series_and_query_exists_under_load_and_no_alert_is_raised() {
    if !there("prometheus") {
        return;
    }
    let seed = Seed::from_env();
    let site = Site::start().await;
    let writer = site.database.writer().await;
    writer.insert_flow("F").await;
    let traffic =
        RandomWriters::start(&site.database.config(), &seed, 2, Duration::from_millis(20));

    let mut selected: BTreeSet<String> = BTreeSet::new();
    for rule in rules() {
        selected.extend(selectors(rule["expr"].as_str().unwrap_or_default()));
    }
    for (_, query) in queries() {
        selected.extend(selectors(&substituted(&query)));
    }
    assert!(selected.len() > 50, "{selected:?}");
    for selector in selected {
        let what = format!("there are series of {selector}");
        eventually(TIMEOUT, &what, async || site.count(&selector).await > 0).await;
    }

    for (panel, query) in queries() {
        let query = substituted(&query);
        let what = format!("{panel}: {query}");
        let answered = async || {
            list_runs(&site.daemons[0]).await;
            let series = site.prometheus.query(&query).await;
            let series = series.unwrap_or_else(|error| panic!("{what}: {error}"));
            let numbers = series.iter().filter(|one| one["value"][1] != "NaN").count();
            MAY_BE_EMPTY.contains(&panel.as_str())
                || numbers > 0
                || (!series.is_empty() && MAY_LACK_A_NUMBER.contains(&panel.as_str()))
        };
        eventually(TIMEOUT, &what, answered).await;
    }
    for (name, query) in variables() {
        let query = substituted(&query);
        let (selector, label) = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')')?.rsplit_once(", "))
            .unwrap_or_else(|| panic!("{name}: {query}"));
        let path = format!("label/{label}/values");
        let values = site.prometheus.get(&path, &[("match[]", selector)]).await;
        let count = values.map(|values| values.as_array().map_or(0, Vec::len));
        // A static configuration has no namespaces.
        let expected = match label {
            "job" => 1,
            "namespace" => 0,
            _ => 2,
        };
        assert_eq!(count, Ok(expected), "{name}");
    }

    // Every rule has been evaluated without an error, and what is recorded has a value.
    let groups = site.prometheus.get("rules", &[]).await;
    let groups = groups.expect("Prometheus answers");
    let mut count = 0;
    for group in groups["groups"].as_array().expect("a list of groups") {
        for rule in group["rules"].as_array().expect("a list of rules") {
            assert_eq!(rule["health"], "ok", "{rule}");
            count += 1;
        }
    }
    assert_eq!(count, rules().len());
    for record in rules().iter().filter_map(|rule| rule["record"].as_str()) {
        let what = format!("{record} is recorded");
        eventually(TIMEOUT, &what, async || site.count(record).await == 1).await;
    }

    let unexpected = async || {
        let mut alerts = site.alerts().await;
        alerts.retain(|alert| {
            let name = alert["labels"]["alertname"].as_str();
            !name.is_some_and(|name| MAY_BE_RAISED.contains(&name))
        });
        alerts
    };
    eventually_eq(TIMEOUT, "no alert is raised", Vec::new(), unexpected).await;
    traffic.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_fault_of_each_kind_raises_its_alert() {
    if !there("prometheus") {
        return;
    }
    let site = Site::start().await;
    let writer = site.database.writer().await;
    let client = writer.client();
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let id = writer.insert_run("F", Some(now / 1000)).await;
    writer.attempt_ok("F", id, "True", now).await;
    eventually_status(&writer, "F", id, "completed").await;
    site.eventually_without_alerts().await;

    let run = async |sql: &str| client.batch_execute(sql).await.expect("valid SQL");
    run("update runs_v3 set run_status = 'failed'").await;
    let drift = site.eventually_raised("StatusIndexerDrift").await;
    assert_eq!(drift["labels"]["cause"], "evidence");
    let description = drift["annotations"]["description"].as_str();
    let description = description.unwrap_or_default();
    assert!(
        description.contains("decided by evidence (job status-indexer, "),
        "{description}"
    );

    writer.attempt_ok("F", id, "rubbish", now + 1).await;
    site.eventually_raised("StatusIndexerInvalidEvidence").await;

    run("alter table metadata_v3 disable trigger status_indexer_insert").await;
    site.eventually_raised("StatusIndexerTriggersMissing").await;
    run("alter table metadata_v3 enable trigger status_indexer_insert").await;
    let mended = async || {
        let alerts = site.alerts().await;
        let raised = |alert: &Value| alert["labels"]["alertname"] == "StatusIndexerTriggersMissing";
        !alerts.iter().any(raised)
    };
    eventually(TIMEOUT, "the trigger is enabled again", mended).await;

    // One daemon ends: it is missed, and the other one leads.
    site.daemons[0].kill9().await;
    let down = site.eventually_raised("StatusIndexerDown").await;
    let instance = site.daemons[0].address().await.to_string();
    assert_eq!(down["labels"]["instance"], instance);
    site.daemons[1].kill9().await;
    site.eventually_raised("StatusIndexerAbsent").await;

    for alert in site.alerts().await {
        for text in alert["annotations"].as_object().expect("texts").values() {
            let text = text.as_str().expect("an annotation is a text");
            // What Prometheus writes if a template fails.
            assert!(
                !text.contains("<error") && !text.contains("<no value>"),
                "{text}"
            );
        }
    }
}
