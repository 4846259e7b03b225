//! A page for people at `/`: what the metrics say at this moment, without Prometheus.
//!
//! Self-contained and without scripts; it loads itself again every few seconds. Reads the metrics
//! alone, so that it also answers while the database is away, and says the same as `/metrics`.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY};
use axum::response::{Html, IntoResponse};
use prometheus::IntGauge;

use crate::metrics::{Lags, Metrics};
use crate::status::Status;

const STYLE: &str = include_str!("page.css");

/// Nothing is loaded from anywhere.
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
    format!(
        "<!doctype html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<meta name=\"color-scheme\" content=\"light dark\">
<meta http-equiv=\"refresh\" content=\"3\">
<title>{title}</title>
<style>{STYLE}</style>
<main>
<header><h1>status-indexer</h1><span>{version}</span></header>
<p class=\"verdict {tone}\">{verdict}</p>
<section class=\"tiles\">{tiles}</section>
<section class=\"columns\">
<div><h2>Work</h2><dl>{work}</dl></div>
<div><h2>Trust</h2><dl>{trust}</dl></div>
</section>
<h2>Statuses written</h2>
{transitions}
<footer><a href=\"metrics\">/metrics</a><a href=\"readyz\">/readyz</a><a href=\"healthz\">/healthz</a>\
<span>as of {clock} UTC, loads itself again every 3 s</span></footer>
</main>
</html>
",
        title = escape(&format!("{} · status-indexer", verdict(metrics).1)),
        version = escape(env!("CARGO_PKG_VERSION")),
        tone = verdict(metrics).0,
        verdict = escape(verdict(metrics).1),
        tiles = tiles(metrics),
        work = work(metrics),
        trust = trust(metrics, now),
        transitions = transitions(metrics),
        clock = clock(now),
    )
}

/// The one sentence that most visitors come for, with its colour.
fn verdict(metrics: &Metrics) -> (&'static str, &'static str) {
    if !yes(&metrics.up) {
        return ("bad", "The database does not answer");
    }
    if !yes(&metrics.valid) {
        return (
            "wait",
            "The first pass over all runs is not complete: do not believe the column yet",
        );
    }
    if yes(&metrics.leader) {
        (
            "good",
            "The column can be believed, and this daemon keeps it true",
        )
    } else {
        ("good", "The column can be believed; this daemon stands by")
    }
}

fn tiles(metrics: &Metrics) -> String {
    let counted = metrics.counted_runs();
    let mut html = String::new();
    for status in Status::ALL {
        let count = counted.iter().find(|(name, _)| name == status.as_str());
        let value = count.map_or_else(|| "–".to_owned(), |(_, count)| grouped(*count));
        let hint = match (status, count) {
            (_, None) => "not counted yet",
            (Status::Running, _) => "as of the last sweep",
            _ => "as of the last pass",
        };
        tile(&mut html, status.as_str(), &value, hint);
    }
    let events = Lags::of(&metrics.event_lag_seconds);
    tile(
        &mut html,
        "event lag p50",
        &millis(events.quantile(0.5)),
        "written to committed",
    );
    tile(
        &mut html,
        "event lag p99",
        &millis(events.quantile(0.99)),
        "since the start",
    );
    let sweeps = Lags::of(&metrics.sweep_lag_seconds);
    tile(
        &mut html,
        "sweep lag p99",
        &millis(sweeps.quantile(0.99)),
        "deadline to committed",
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

fn work(metrics: &Metrics) -> String {
    let mut html = String::new();
    let leads = if yes(&metrics.leader) {
        "this daemon"
    } else {
        "not this daemon"
    };
    row(&mut html, "leader", leads);
    let listens = if yes(&metrics.listener_connected) {
        "connected"
    } else {
        "not connected: the queue is polled"
    };
    row(&mut html, "listener", listens);
    let queue = match metrics.queue_depth.get() {
        0 => "nothing waits".to_owned(),
        depth => format!(
            "{depth} waiting, the oldest for {}",
            millis(seconds(metrics.queue_oldest_age_seconds.get()))
        ),
    };
    row(&mut html, "queue, every 15 s", &queue);
    row(&mut html, "events", &whole(metrics.events_total.get()));
    row(
        &mut html,
        "notifications",
        &whole(metrics.notifications_total.get()),
    );
    html
}

fn trust(metrics: &Metrics, now: SystemTime) -> String {
    let mut html = String::new();
    let believable = if yes(&metrics.valid) {
        "yes"
    } else {
        "not yet"
    };
    row(&mut html, "believable", believable);
    let pass = metrics.reconcile_last_pass_timestamp_seconds.get();
    let ended = seconds(pass).filter(|secs| !secs.is_zero());
    let ago = ended.and_then(|ended| now.duration_since(UNIX_EPOCH + ended).ok());
    let last = ago.map_or_else(
        || "none by this daemon".to_owned(),
        |ago| format!("{} ago", long(ago)),
    );
    row(&mut html, "last pass", &last);
    row(
        &mut html,
        "runs compared",
        &whole(metrics.reconciled_total.get()),
    );
    row(&mut html, "found adrift", &whole(metrics.counted_drift()));
    row(
        &mut html,
        "malformed evidence",
        &whole(metrics.invalid_evidence_total.get()),
    );
    row(
        &mut html,
        "listener reconnects",
        &whole(metrics.listener_reconnects_total.get()),
    );
    html
}

fn row(html: &mut String, name: &str, value: &str) {
    let _ = write!(html, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
}

fn transitions(metrics: &Metrics) -> String {
    let counted = metrics.counted_transitions();
    if counted.is_empty() {
        return "<p class=\"none\">None yet.</p>".to_owned();
    }
    let mut html = String::from(
        "<table><tr><th>from</th><th>to</th><th>because</th><th class=\"n\">times</th></tr>",
    );
    for ([from, to, reason], count) in &counted {
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td></tr>",
            escape(from),
            escape(to),
            escape(&reason.replace('_', " ")),
            whole(*count)
        );
    }
    html + "</table>"
}

fn yes(gauge: &IntGauge) -> bool {
    gauge.get() == 1
}

fn seconds(secs: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(secs).ok()
}

fn millis(lag: Option<Duration>) -> String {
    match lag {
        None => "–".to_owned(),
        Some(lag) if lag < Duration::from_secs(1) => {
            format!("{:.1} ms", lag.as_secs_f64() * 1000.0)
        }
        Some(lag) => long(lag),
    }
}

fn long(time: Duration) -> String {
    match time.as_secs() {
        secs @ 0..120 => format!("{secs} s"),
        secs @ 120..7200 => format!("{} min", secs / 60),
        secs => format!("{} h", secs / 3600),
    }
}

fn whole(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a gauge of whole things"
)]
fn grouped(count: f64) -> String {
    whole(count.max(0.0) as u64)
}

fn clock(now: SystemTime) -> String {
    let secs = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    format!(
        "{:02}:{:02}:{:02}",
        secs / 3600 % 24,
        secs / 60 % 60,
        secs % 60
    )
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
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
    fn the_verdict_follows_the_gauges() {
        let metrics = Metrics::new();
        assert_eq!(verdict(&metrics).0, "bad");
        metrics.up.set(1);
        assert_eq!(verdict(&metrics).0, "wait");
        metrics.valid.set(1);
        assert_eq!(verdict(&metrics).0, "good");
    }

    #[test]
    fn numbers_are_for_reading() {
        assert_eq!(whole(0), "0");
        assert_eq!(whole(123), "123");
        assert_eq!(whole(1_234_567), "1,234,567");
        assert_eq!(millis(Some(Duration::from_micros(1500))), "1.5 ms");
        assert_eq!(millis(Some(Duration::from_secs(300))), "5 min");
        assert_eq!(millis(None), "–");
    }
}
