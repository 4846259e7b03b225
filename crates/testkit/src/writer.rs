//! Writes rows as the metadata service and its clients do.
//!
//! Owns the shape of those writes: each is an autocommitted statement of its own, metadata belongs
//! to the end step, heartbeats only advance by ten seconds or more. Promises nothing about the
//! statuses that follow: these are what the tests check. The test gives the times, seconds for
//! heartbeats, milliseconds for `ts_epoch`.

use tokio_postgres::Client;

/// A connection of the metadata service.
#[derive(Debug)]
pub struct Writer {
    client: Client,
}

impl Writer {
    /// Writes through this connection.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// The connection itself, for a statement of the test's own.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The database's clock, in seconds with their fraction.
    ///
    /// # Panics
    /// As every method here, if the statement fails.
    pub async fn now(&self) -> f64 {
        let row = self
            .client
            .query_one("select extract(epoch from clock_timestamp())::float8", &[])
            .await
            .expect("the clock can be read");
        row.get(0)
    }

    /// The database's clock, in whole seconds, as a heartbeat would carry it.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the service truncates as well"
    )]
    pub async fn now_secs(&self) -> i64 {
        self.now().await as i64
    }

    /// The database's clock, in whole milliseconds, as `ts_epoch` would carry it.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the service truncates as well"
    )]
    pub async fn now_ms(&self) -> i64 {
        (self.now().await * 1000.0) as i64
    }

    /// Registers a flow; it may exist already.
    pub async fn insert_flow(&self, flow: &str) {
        const INSERT: &str = "\
insert into flows_v3 (flow_id, user_name, ts_epoch, tags, system_tags)
values ($1, 'tester', (extract(epoch from clock_timestamp()) * 1000)::bigint, '[]', '[]')
on conflict do nothing";
        self.client
            .execute(INSERT, &[&flow])
            .await
            .expect("a flow can be written");
    }

    /// Creates a run with its first heartbeat (seconds), as new clients do, or without, as old
    /// ones.
    pub async fn insert_run(&self, flow: &str, hb_secs: Option<i64>) -> i32 {
        const INSERT: &str = "\
insert into runs_v3 (flow_id, user_name, ts_epoch, tags, system_tags, last_heartbeat_ts)
values ($1, 'tester', (extract(epoch from clock_timestamp()) * 1000)::bigint, '[]',
        '[\"user:tester\", \"metaflow_version:2.12.5\"]', $2)
returning run_number";
        self.client
            .query_one(INSERT, &[&flow, &hb_secs])
            .await
            .expect("a run can be written")
            .get(0)
    }

    /// A heartbeat (seconds) under upstream's condition; returns whether it was written.
    pub async fn heartbeat(&self, flow: &str, run: i32, hb_secs: i64) -> bool {
        const UPDATE: &str = "\
update runs_v3
   set last_heartbeat_ts = $3::bigint
 where flow_id = $1
   and run_number = $2
   and (last_heartbeat_ts is null or last_heartbeat_ts <= $3::bigint - 10)";
        self.client
            .execute(UPDATE, &[&flow, &run, &hb_secs])
            .await
            .expect("a heartbeat can be written")
            == 1
    }

    /// The end step's task starts (again).
    pub async fn attempt(&self, flow: &str, run: i32, ts_ms: i64) -> i64 {
        self.metadata(flow, run, "end", "attempt", "0", ts_ms).await
    }

    /// The end step's task ends, with the value `True` or `False` from a real client.
    pub async fn attempt_ok(&self, flow: &str, run: i32, value: &str, ts_ms: i64) -> i64 {
        self.metadata(flow, run, "end", "attempt_ok", value, ts_ms)
            .await
    }

    /// Any metadata row; returns its id.
    pub async fn metadata(
        &self,
        flow: &str,
        run: i32,
        step: &str,
        field: &str,
        value: &str,
        ts_ms: i64,
    ) -> i64 {
        const INSERT: &str = "\
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type,
                         user_name, ts_epoch, tags, system_tags)
values ($1, $2, $3, 1, $4, $5, $6, 'tester', $7, '[\"attempt_id:0\"]', '[]')
returning id";
        let kind = if field == "attempt_ok" {
            "internal_attempt_status"
        } else {
            field
        };
        let row = self
            .client
            .query_one(
                INSERT,
                &[&flow, &i64::from(run), &step, &field, &value, &kind, &ts_ms],
            )
            .await
            .expect("metadata can be written");
        row.get(0)
    }

    /// The stored status of a run.
    pub async fn status(&self, flow: &str, run: i32) -> String {
        const SELECT: &str = "\
select run_status::text
  from runs_v3
 where flow_id = $1
   and run_number = $2";
        self.client
            .query_one(SELECT, &[&flow, &run])
            .await
            .expect("the run and its column exist")
            .get(0)
    }
}
