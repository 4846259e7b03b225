//! The rules alone, at every edge of the cutoff, on a clock of the test's own.

use std::collections::BTreeMap;

use rand::RngExt as _;
use rand::rngs::StdRng;
use testkit::database::Database;
use testkit::oracle::{Evidence, Expected, MICROS, Reason, Row, Value};

use super::cases::pick;
use super::{migrated, seeded};

/// One call of `reason`, with what the oracle needs for the same.
struct Instant {
    ok: Option<bool>,
    ok_ts: Option<i64>,
    retry_ts: Option<i64>,
    heartbeat: Option<i64>,
    now_micros: i128,
    cutoff: i64,
}

impl Instant {
    fn any(rng: &mut StdRng) -> Self {
        let cutoff = *pick(rng, &[1, 6, 60, 360, 315_360_000]);
        let heartbeat = match rng.random_range(0..8) {
            0 => None,
            1 => Some(*pick(rng, &[i64::MIN, i64::MAX, 0, -1])),
            _ => Some(rng.random_range(0..4_000_000_000)),
        };
        let from = i128::from(heartbeat.unwrap_or(1_700_000_000)) * MICROS;
        // Instants around the edges, on both sides, down to a microsecond, and the edges
        // themselves.
        let edge = i128::from(cutoff) * MICROS * pick(rng, &[-1, 0, 1]);
        let off = match rng.random_range(0..4) {
            0 => 0,
            1 => *pick(rng, &[-1, 1]),
            2 => rng.random_range(-1_000_000..=1_000_000),
            _ => rng.random_range(-1_000_000_000_000_000..1_000_000_000_000_000),
        };
        let ok = *pick(rng, &[None, None, Some(true), Some(false), Some(false)]);
        let times = [0, 1, 2, i64::MIN, i64::MAX];
        Self {
            ok,
            // A value that is not a boolean has a time as well.
            ok_ts: (ok.is_some() || rng.random()).then(|| *pick(rng, &times)),
            retry_ts: rng.random::<bool>().then(|| *pick(rng, &times)),
            heartbeat,
            now_micros: from + edge + off,
            cutoff,
        }
    }

    fn evaluate(&self) -> Expected {
        let row = |id, field: &str, value: &str, ts_ms| Row {
            id,
            step_name: "end".to_owned(),
            task_id: 1,
            field_name: field.to_owned(),
            value: Value::Text(value.to_owned()),
            ts_ms,
        };
        let value = self
            .ok
            .map_or("not a boolean", |ok| if ok { "True" } else { "False" });
        let ok = self.ok_ts.map(|ts_ms| row(1, "attempt_ok", value, ts_ms));
        let retry = self.retry_ts.map(|ts_ms| row(2, "attempt", "1", ts_ms));
        Evidence {
            rows: ok.into_iter().chain(retry).collect(),
            heartbeat_secs: self.heartbeat,
        }
        .evaluate(self.now_micros, self.cutoff)
    }

    /// The only moment at which time alone can change the status: the heartbeat leaves the range,
    /// or comes into it.
    fn next_change(&self, expected: &Expected) -> Option<String> {
        let heartbeat = i128::from(self.heartbeat?);
        let cutoff = i128::from(self.cutoff);
        let secs = match expected.reason {
            Reason::Heartbeat => heartbeat + cutoff,
            Reason::HeartbeatLost if heartbeat * MICROS > self.now_micros => heartbeat - cutoff,
            _ => return None,
        };
        Some(secs.to_string())
    }

    /// Seconds, with all digits.
    fn now_secs(&self) -> String {
        let (secs, micros) = (
            self.now_micros.div_euclid(MICROS),
            self.now_micros.rem_euclid(MICROS),
        );
        format!("{secs}::numeric + 0.{micros:06}")
    }
}

#[tokio::test]
async fn reasons_agree_with_the_oracle_at_every_edge_of_the_cutoff() {
    let mut rng = seeded();
    let database = Database::fresh().await;
    let client = migrated(&database).await;
    let instants: Vec<Instant> = (0..6_000).map(|_| Instant::any(&mut rng)).collect();
    let sql = |value: Option<String>| value.unwrap_or_else(|| "null".to_owned());
    let mut met = BTreeMap::new();
    for batch in instants.chunks(1_000) {
        let calls: Vec<String> = batch
            .iter()
            .enumerate()
            .map(|(at, instant)| {
                format!(
                    "({at}, status_indexer.reason({}, '{}', {}, {heartbeat}, {now}, {cutoff}),
                      {heartbeat}::bigint, {now}, {cutoff})",
                    sql(instant.ok.map(|ok| ok.to_string())),
                    instant.ok_ts.unwrap_or(0),
                    sql(instant.retry_ts.map(|ts| format!("'{ts}'"))),
                    heartbeat = sql(instant.heartbeat.map(|secs| format!("'{secs}'"))),
                    now = instant.now_secs(),
                    cutoff = instant.cutoff
                )
            })
            .collect();
        let query = format!(
            "select reason, status_indexer.status(reason),
                    status_indexer.next_change(reason, heartbeat, now_secs, cutoff)::text
               from (values {}) v (at, reason, heartbeat, now_secs, cutoff) order by at",
            calls.join(", ")
        );
        let rows = client
            .query(&query, &[])
            .await
            .expect("reason accepts any number");
        for (instant, row) in batch.iter().zip(rows) {
            let expected = instant.evaluate();
            let (reason, status): (&str, &str) = (row.get(0), row.get(1));
            let context = format!(
                "ok {:?} at {:?}, retry {:?}, heartbeat {:?}, now {}, cutoff {}",
                instant.ok,
                instant.ok_ts,
                instant.retry_ts,
                instant.heartbeat,
                instant.now_secs(),
                instant.cutoff
            );
            assert_eq!(reason, expected.reason.as_str(), "{context}");
            assert_eq!(status, expected.status.as_str(), "{context}");
            let next: Option<String> = row.get(2);
            assert_eq!(next, instant.next_change(&expected), "{context}");
            *met.entry(reason.to_owned()).or_insert(0) += 1;
        }
    }
    assert_eq!(met.len(), 6, "every rule occurs: {met:?}");
    assert!(met.values().all(|count| *count >= 100), "often: {met:?}");
}
