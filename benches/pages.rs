//! Reading a page of fifty runs by status from the view, compared with the page without a filter.
//!
//! The view is exact: the queue is empty at first, and then has a thousand events of the same flow, each
//! of which every read evaluates. Measures prepared statements from one client, without HTTP: the cost for
//! a reader that uses SQL, with a generic plan, as the manual recommends, and with PostgreSQL's default.
//! Beside it, the same pages by the column alone, which is not exact, show what is the index's share.
//! Buffers are those of the plan that the server keeps after the first executions.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use crate::dataset::BIG_FLOW;
use crate::env::BenchEnv;
use crate::report::{Durations, Report, Target, median};

/// A flow with a tenth of the largest flow's runs, all of which have completed.
pub(crate) const DONE_FLOW: &str = "AllDone";

/// Alternations between a page and the page without a filter, so that both are measured under the same
/// conditions: the speed of a machine can change within a second.
const ROUNDS: usize = 40;

/// Calls of each page in a round.
const CALLS: usize = 20;

/// Events that wait in the queue for the second measurement.
const WAITING: i64 = 1000;

/// The queue after some use, and what a daemon publishes. The cutoff is a day, so that no deadline passes
/// while the benchmark runs.
const IDLE: &str = "\
insert into status_indexer.queue (flow_id, run_number)
select 'none', n from generate_series(1, 10000) n;
delete from status_indexer.queue;
update status_indexer.state
   set deadlines_from = now() - interval '10 seconds',
       deadlines_until = now() + interval '600 seconds',
       first_queue_id = (select last_value + 1 from status_indexer.queue_id_seq);";

const COLUMNS: &str =
    "flow_id, run_number, run_id, user_name, ts_epoch, tags, system_tags, last_heartbeat_ts";

const ORDER: &str = "order by ts_epoch desc, run_number desc";

/// Adds the runs with their evidence, so that reconciliation finds no drift; triggers are disabled.
const ALL_DONE: &str = "\
set session_replication_role = replica;
insert into flows_v3 (flow_id, ts_epoch) values ('AllDone', 0);
with done as (
  insert into runs_v3 (flow_id, user_name, ts_epoch, tags, system_tags, last_heartbeat_ts, run_status)
  select 'AllDone', user_name, ts_epoch, tags, system_tags, last_heartbeat_ts, 'completed'
    from runs_v3
   where flow_id = 'BigFlow'
     and run_number % 10 = 0
  returning flow_id, run_number, ts_epoch
)
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
select flow_id, run_number, 'end', 1, 'attempt_ok', 'True', 'internal_attempt_status', ts_epoch
  from done;
reset session_replication_role;";

/// A page to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query {
    pub(crate) what: &'static str,
    pub(crate) flow: &'static str,
    pub(crate) statuses: &'static [&'static str],
    pub(crate) deep: bool,
    /// Whether it reads the view; otherwise the table and its column, which is not exact.
    exact: bool,
}

impl Query {
    pub(crate) const ALL: &[Self] = &[
        Self::new("failed, first page", BIG_FLOW, &["failed"], false),
        Self::new("failed, deep", BIG_FLOW, &["failed"], true),
        Self::new("completed, first page", BIG_FLOW, &["completed"], false),
        Self::new("completed, deep", BIG_FLOW, &["completed"], true),
        Self::new("running, first page", BIG_FLOW, &["running"], false),
        Self::new("running, deep", BIG_FLOW, &["running"], true),
        Self::new("a status that no run has", DONE_FLOW, &["failed"], false),
        Self::new(
            "two statuses, first page",
            BIG_FLOW,
            &["running", "failed"],
            false,
        ),
        Self::new("two statuses, deep", BIG_FLOW, &["running", "failed"], true),
        Self::new(
            "three statuses, deep",
            BIG_FLOW,
            &["running", "completed", "failed"],
            true,
        ),
        Self::new(
            "two statuses that no run has",
            DONE_FLOW,
            &["running", "failed"],
            false,
        ),
    ];

    const fn new(
        what: &'static str,
        flow: &'static str,
        statuses: &'static [&'static str],
        deep: bool,
    ) -> Self {
        Self {
            what,
            flow,
            statuses,
            deep,
            exact: true,
        }
    }

    /// A page of the view or of the table; with a cursor if the page is deep.
    fn sql(&self) -> String {
        let cursor = if self.deep {
            " and (ts_epoch, run_number) < ($2::bigint, $3::int)"
        } else {
            ""
        };
        let (source, column) = if self.exact {
            ("status_indexer.runs", "status")
        } else {
            ("runs_v3", "run_status")
        };
        let wanted: Vec<String> = self
            .statuses
            .iter()
            .map(|status| format!("{column} = '{status}'"))
            .collect();
        let condition = match &wanted[..] {
            [] => String::new(),
            wanted => format!(" and ({})", wanted.join(" or ")),
        };
        format!(
            "select {COLUMNS} from {source} where flow_id = $1{condition}{cursor} {ORDER} limit 50"
        )
    }

    /// A script for `pgbench`: the same statement with its values as literals and variables.
    pub(crate) fn with_values(&self, middle: (i64, i32)) -> String {
        let set = format!("\\set ts {}\n\\set number {}\n", middle.0, middle.1);
        let sql = self
            .sql()
            .replace("$1", &format!("'{}'", self.flow))
            .replace("$2", ":ts")
            .replace("$3", ":number");
        format!("{set}{sql}")
    }

    fn limit(&self) -> f64 {
        if self.statuses.len() > 1 { 1.7 } else { 1.3 }
    }
}

pub(crate) async fn run(env: &mut BenchEnv) -> Result<Report> {
    let settings = env.settings.clone();
    let mut report = Report::new(
        "pages",
        format!(
            "{ROUNDS} rounds of {CALLS} calls each, one client, {} runs in the flow",
            settings.runs
        ),
    );
    let (database, daemon) = env.indexed_dataset().await?;
    daemon.terminate().await;
    let client = database.client().await;
    add_done_flow(&client).await?;
    client.batch_execute("set jit = off").await?;
    let generic = database.client().await;
    generic
        .batch_execute("set jit = off; set plan_cache_mode = force_generic_plan")
        .await?;
    client.batch_execute(IDLE).await?;
    client
        .batch_execute("vacuum analyze runs_v3, status_indexer.queue, status_indexer.state")
        .await?;
    let middle = middle(&client, settings.runs).await?;
    for &query in Query::ALL {
        let what = query.what;
        let measured = beside_floor(&generic, query, middle).await?;
        report.record(
            &format!("{what}: p50"),
            measured.page.quantile_ms(0.5),
            "ms",
        );
        report.record(
            &format!("{what}: p99"),
            measured.page.quantile_ms(0.99),
            "ms",
        );
        report.figure(
            &format!("{what}: p50 / without a filter"),
            measured.ratio(),
            "",
            Target::Below(query.limit()),
        );
        report.note("  half of the rounds", &measured.spread());
        if query.statuses.len() == 1 {
            let column = Query {
                exact: false,
                ..query
            };
            let inexact = beside_floor(&generic, column, middle).await?;
            report.record(
                &format!("{what}: the column alone, p50 / without a filter"),
                inexact.ratio(),
                "",
            );
        }
        let by_default = beside_floor(&client, query, middle).await?;
        report.record(
            &format!("{what}: p50 / without a filter, both by default"),
            by_default.ratio(),
            "",
        );
        let buffers = buffers(&generic, query, middle).await?;
        report.figure(
            &format!("{what}: buffers"),
            buffers,
            "",
            Target::Below(500.0),
        );
    }
    let waiting = format!(
        "insert into status_indexer.queue (flow_id, run_number)
         select flow_id, run_number from runs_v3 where flow_id = '{BIG_FLOW}'
          order by run_number desc limit {WAITING}"
    );
    client.batch_execute(&waiting).await?;
    for (what, flow) in [("of their flow", BIG_FLOW), ("of another flow", DONE_FLOW)] {
        let query = Query::new("completed", flow, &["completed"], false);
        let measured = beside_floor(&client, query, middle).await?;
        let name = format!("{WAITING} events {what} in the queue");
        report.record(
            &format!("{name}: p50"),
            measured.page.quantile_ms(0.5),
            "ms",
        );
        report.record(
            &format!("{name}: p50 / without a filter"),
            measured.ratio(),
            "",
        );
    }
    client
        .batch_execute("delete from status_indexer.queue")
        .await?;
    Ok(report)
}

/// The times of a page beside those of the page without a filter.
struct Measured {
    page: Durations,
    /// The median of the page divided by that of the page without a filter, of each round, ascending.
    ratios: Vec<f64>,
}

impl Measured {
    fn ratio(&self) -> f64 {
        median(&self.ratios)
    }

    /// The quartiles of the ratio.
    fn spread(&self) -> String {
        let count = self.ratios.len();
        format!(
            "{:.2} to {:.2}",
            self.ratios[count / 4],
            self.ratios[count * 3 / 4]
        )
    }
}

/// Measures a page of a flow, and the page of the largest flow without a filter.
async fn beside_floor(client: &Client, query: Query, middle: (i64, i32)) -> Result<Measured> {
    let floor = Query {
        statuses: &[],
        exact: false,
        flow: BIG_FLOW,
        ..query
    };
    let (query, floor) = (
        Prepared::new(client, query, middle).await?,
        Prepared::new(client, floor, middle).await?,
    );
    let mut measured = Measured {
        page: Durations::new(),
        ratios: Vec::new(),
    };
    for _ in 0..ROUNDS {
        let (mut of_floor, mut of_page) = (Durations::new(), Durations::new());
        for _ in 0..CALLS {
            of_floor.record(floor.time().await?);
        }
        for _ in 0..CALLS {
            let took = query.time().await?;
            of_page.record(took);
            measured.page.record(took);
        }
        let ratio = of_page.quantile_ms(0.5) / of_floor.quantile_ms(0.5);
        measured.ratios.push(ratio);
    }
    measured.ratios.sort_by(f64::total_cmp);
    Ok(measured)
}

/// Adds the flow with only completed runs, unless it exists.
pub(crate) async fn add_done_flow(client: &Client) -> Result<()> {
    let known = client
        .query_opt("select from flows_v3 where flow_id = $1", &[&DONE_FLOW])
        .await?;
    if known.is_none() {
        client.batch_execute(ALL_DONE).await?;
        client.batch_execute("vacuum analyze runs_v3").await?;
    }
    Ok(())
}

/// A cursor deep in the largest flow: the `ts_epoch` and number of one of its runs.
pub(crate) async fn middle(client: &Client, runs: i64) -> Result<(i64, i32)> {
    const MIDDLE: &str = "\
select ts_epoch, run_number
  from runs_v3
 where flow_id = $1
   and run_number >= $2
 order by run_number
 limit 1";
    let number = i32::try_from(runs * 6 / 10)?;
    let row = client.query_one(MIDDLE, &[&BIG_FLOW, &number]).await?;
    Ok((row.get(0), row.get(1)))
}

/// A prepared statement with its values, which was executed until the server has chosen its plan.
struct Prepared<'c> {
    client: &'c Client,
    statement: Statement,
    query: Query,
    middle: (i64, i32),
}

impl<'c> Prepared<'c> {
    async fn new(client: &'c Client, query: Query, middle: (i64, i32)) -> Result<Self> {
        let prepared = Self {
            client,
            statement: client.prepare(&query.sql()).await?,
            query,
            middle,
        };
        for _ in 0..10 {
            prepared.time().await?;
        }
        Ok(prepared)
    }

    /// How long one execution takes.
    async fn time(&self) -> Result<Duration> {
        let all: [&(dyn ToSql + Sync); 3] = [&self.query.flow, &self.middle.0, &self.middle.1];
        let params = if self.query.deep { &all[..] } else { &all[..1] };
        let start = Instant::now();
        self.client.query(&self.statement, params).await?;
        Ok(start.elapsed())
    }
}

/// Shared buffers that the final plan reads.
async fn buffers(client: &Client, query: Query, middle: (i64, i32)) -> Result<f64> {
    let types = if query.deep {
        "(text, bigint, int)"
    } else {
        "(text)"
    };
    let params = if query.deep {
        format!("('{}', {}, {})", query.flow, middle.0, middle.1)
    } else {
        format!("('{}')", query.flow)
    };
    client
        .batch_execute(&format!("prepare page {types} as {}", query.sql()))
        .await?;
    for _ in 0..10 {
        client
            .batch_execute(&format!("execute page {params}"))
            .await?;
    }
    let explain = format!("explain (analyze, buffers, format json) execute page {params}");
    let plan: serde_json::Value = client.query_one(&explain, &[]).await?.get(0);
    client.batch_execute("deallocate page").await?;
    let blocks = |kind: &str| plan[0]["Plan"][kind].as_f64().unwrap_or(f64::NAN);
    Ok(blocks("Shared Hit Blocks") + blocks("Shared Read Blocks"))
}
