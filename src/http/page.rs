//! The status page at `/`: the current metrics, for people without Prometheus.
//!
//! Self-contained and without scripts; it reloads every few seconds. It reads the metrics alone, so it
//! works while the database is unavailable and never differs from `/metrics`.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY};
use axum::response::{Html, IntoResponse};
use prometheus::IntGauge;

use super::format::{UNKNOWN, count, duration, escape, lag, time_of_day};
use crate::metrics::{Lags, Metrics};
use crate::status::Status;

const STYLE: &str = include_str!("page.css");

/// The page loads nothing from anywhere.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'";

pub(super) async fn show(State(metrics): State<Metrics>) -> impl IntoResponse {
    (
        [
            (CACHE_CONTROL, "no-store"),
            (CONTENT_SECURITY_POLICY, POLICY),
        ],
        Html(render(&metrics, SystemTime::now())),
    )
}

fn render(metrics: &Metrics, now: SystemTime) -> String {
    let (tone, headline) = headline(metrics);
    format!(
        "<!doctype html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<meta name=\"color-scheme\" content=\"light dark\">
<meta http-equiv=\"refresh\" content=\"3\">
<title>{headline} · status-indexer</title>
<style>{STYLE}</style>
<main>
<header><h1>status-indexer</h1><span>{version}</span></header>
<p class=\"headline {tone}\">{headline}</p>
<section class=\"tiles\">{tiles}</section>
<section class=\"columns\">
<div><h2>Pipeline</h2><dl>{pipeline}</dl></div>
<div><h2>Consistency</h2><dl>{consistency}</dl></div>
</section>
<h2>Transitions since start</h2>
{transitions}
<footer><a href=\"metrics\">/metrics</a><a href=\"readyz\">/readyz</a><a href=\"healthz\">/healthz</a>\
<span>as of {time} UTC, reloads every 3 s</span></footer>
</main>
</html>
",
        headline = escape(&headline),
        version = escape(crate::version::VERSION),
        tiles = tiles(metrics),
        pipeline = pipeline(metrics),
        consistency = consistency(metrics, now),
        transitions = transitions(metrics),
        time = time_of_day(now),
    )
}

/// The state in one sentence, with its CSS class.
fn headline(metrics: &Metrics) -> (&'static str, String) {
    if !is_set(&metrics.up) {
        return (
            "bad",
            "Unavailable: the database does not answer".to_owned(),
        );
    }
    let unmet = metrics.unmet();
    if !unmet.is_empty() {
        let tone = if is_set(&metrics.valid) {
            "bad"
        } else {
            "wait"
        };
        return (tone, format!("Not ready: {}", unmet.join("; ")));
    }
    let text = match (
        is_set(&metrics.leader),
        is_set(&metrics.leader_without_listen),
    ) {
        (true, false) => "Valid: the column is current and this daemon maintains it",
        (true, true) => {
            "Valid: the column is current and this daemon maintains it without LISTEN, by polling"
        }
        (false, _) => "Valid: the column is current; this daemon is a follower",
    };
    ("good", text.to_owned())
}

fn tiles(metrics: &Metrics) -> String {
    let mut html = String::new();
    let counted = metrics.counted_runs();
    for status in Status::ALL {
        let runs = counted.iter().find(|(name, _)| name == status.as_str());
        let value = runs.map_or_else(|| UNKNOWN.to_owned(), |(_, runs)| count(whole(*runs)));
        let hint = match (status, runs) {
            (_, None) => "not counted yet",
            (Status::Running, _) => "runs, as of the last sweep",
            _ => "runs, as of the last complete scan",
        };
        tile(&mut html, status.as_str(), &value, hint);
    }
    let events = Lags::of(&metrics.event_lag_seconds);
    for (name, q) in [("event lag p50", 0.5), ("event lag p99", 0.99)] {
        let value = lag(events.quantile(q));
        tile(&mut html, name, &value, "from write to commit, since start");
    }
    let sweeps = Lags::of(&metrics.sweep_lag_seconds);
    let value = lag(sweeps.quantile(0.99));
    tile(
        &mut html,
        "sweep lag p99",
        &value,
        "from deadline to commit, since start",
    );
    html
}

fn tile(html: &mut String, name: &str, value: &str, hint: &str) {
    let (name, value, hint) = (escape(name), escape(value), escape(hint));
    let _ = write!(
        html,
        "<div><b>{name}</b><strong>{value}</strong><small>{hint}</small></div>"
    );
}

fn pipeline(metrics: &Metrics) -> String {
    let role = if is_set(&metrics.leader) {
        "leader"
    } else {
        "follower"
    };
    let listener = if is_set(&metrics.listener_connected) {
        "connected"
    } else {
        "not connected: the worker polls the queue"
    };
    let queue = match metrics.queue_depth.get() {
        0 => "empty".to_owned(),
        depth => format!(
            "{depth} events, the oldest {}",
            lag(seconds(metrics.queue_oldest_age_seconds.get()))
        ),
    };
    rows([
        ("role", role),
        ("LISTEN connection", listener),
        ("queue, sampled every 10 s", &queue),
        ("events processed", &count(metrics.events_total.get())),
        (
            "notifications received",
            &count(metrics.notifications_total.get()),
        ),
        (
            "listener reconnects",
            &count(metrics.listener_reconnects_total.get()),
        ),
    ])
}

fn consistency(metrics: &Metrics, now: SystemTime) -> String {
    let valid = if is_set(&metrics.valid) { "yes" } else { "no" };
    let scanned = seconds(metrics.reconcile_last_pass_timestamp_seconds.get());
    let age = scanned
        .filter(|secs| !secs.is_zero())
        .and_then(|secs| now.duration_since(UNIX_EPOCH + secs).ok());
    let last_scan = age.map_or_else(
        || "none by this daemon".to_owned(),
        |age| format!("{} ago", duration(age)),
    );
    rows([
        ("column valid", valid),
        ("last complete scan", &last_scan),
        ("runs compared", &count(metrics.reconciled_total.get())),
        ("runs with drift", &count(metrics.counted_drift())),
        (
            "invalid evidence",
            &count(metrics.invalid_evidence_total.get()),
        ),
    ])
}

fn rows<const N: usize>(rows: [(&str, &str); N]) -> String {
    rows.map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>", escape(name), escape(value)))
        .concat()
}

fn transitions(metrics: &Metrics) -> String {
    let counted = metrics.counted_transitions();
    if counted.is_empty() {
        return "<p class=\"none\">None yet.</p>".to_owned();
    }
    let mut html = String::from(
        "<table><tr><th>from</th><th>to</th><th>reason</th><th class=\"n\">count</th></tr>",
    );
    for ([from, to, reason], times) in &counted {
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td></tr>",
            escape(from),
            escape(to),
            escape(&reason.replace('_', " ")),
            count(*times)
        );
    }
    html + "</table>"
}

fn is_set(gauge: &IntGauge) -> bool {
    gauge.get() == 1
}

fn seconds(secs: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(secs).ok()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the gauge holds a whole number"
)]
fn whole(gauge: f64) -> u64 {
    gauge.max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let metrics = Metrics::new();
        metrics
            .transitions_total
            .with_label_values(&["<b>\"&'", "failed", "end_failed"])
            .inc();
        let html = render(&metrics, UNIX_EPOCH);
        assert!(!html.contains("<b>\""));
        assert!(html.contains("&lt;b&gt;&quot;&amp;&#39;"));
        assert!(html.contains("end failed"));
    }

    #[test]
    fn the_headline_follows_the_gauges() {
        let metrics = Metrics::new();
        assert_eq!(headline(&metrics).0, "bad");
        metrics.up.set(1);
        assert_eq!(headline(&metrics).0, "wait");
        metrics.valid.set(1);
        assert!(headline(&metrics).1.contains("follower"));
        metrics.leader.set(1);
        assert!(headline(&metrics).1.contains("this daemon maintains it"));
    }
}
