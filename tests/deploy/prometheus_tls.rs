//! Prometheus scrapes a daemon over TLS with a token, by the lines that the documentation shows.

use std::time::Duration;

use serde_json::Value;

use super::prometheus::{Prometheus, STATIC, configuration, there};
use crate::api::access::certificates;
use crate::docs::text;
use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::wait::eventually_eq;

const SOON: Duration = Duration::from_secs(60);

const TOKEN: &str = "scraper-token-0123456789";

/// The lines of the manual for a job of Prometheus.
fn documented() -> Value {
    let manual = text("docs/operations.md");
    let (_, rest) = manual
        .split_once("```yaml\nscheme: https\n")
        .expect("the manual has an example");
    let (lines, _) = rest.split_once("```").expect("the example ends");
    serde_saphyr::from_str(&format!("scheme: https\n{lines}")).expect("it is YAML")
}

#[tokio::test]
async fn prometheus_scrapes_over_tls_with_a_token_as_documented() {
    if !there("prometheus") {
        return;
    }
    let all = certificates(&["one"]).await;
    let directory = tempfile::tempdir().expect("a directory of our own");
    let token = directory.path().join("token");
    std::fs::write(&token, TOKEN).expect("the directory is ours");
    let authority = directory.path().join("ca.crt");
    std::fs::copy(all.path("one-ca.crt"), authority).expect("openssl wrote it");
    let database = Database::fresh().await;
    let path = |name: &str| all.path(name).display().to_string();
    let daemon = Launch::on(&database)
        .env("STATUS_INDEXER_METRICS_TLS_CERT", &path("one.crt"))
        .env("STATUS_INDEXER_METRICS_TLS_KEY", &path("one.key"))
        .env(
            "STATUS_INDEXER_METRICS_TOKEN_FILE",
            &token.display().to_string(),
        )
        .spawn();
    let target = format!("localhost:{}", daemon.address().await.port());
    let mut config = configuration(STATIC, &[target], "1s");
    let job = config["scrape_configs"][0].as_object_mut();
    let job = job.expect("a job is a mapping");
    for (name, value) in documented().as_object().expect("a mapping") {
        job.insert(name.clone(), value.clone());
    }
    let prometheus = Prometheus::start_in(directory, &config);
    for query in [
        r#"up{job="status-indexer"}"#,
        r#"status_indexer_valid{job="status-indexer"}"#,
    ] {
        let what = format!("Prometheus knows {query}");
        eventually_eq(SOON, &what, Some("1".to_owned()), async || {
            prometheus.value(query).await
        })
        .await;
    }
    assert!(daemon.terminate().await.success());
}
