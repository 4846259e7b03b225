//! The plug-in in the web UI's backend: its listings, compared with those of the joins.
//!
//! Two hosts on one database, one with the plug-in and one without, are asked the same random listings.
//! The host's module of the UI in `tests/deploy/plugin` is ours; it stands for the backend.

use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::plugin::{ON, Running, Service};
use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::seed::Seed;
use testkit::wait::eventually;

/// The fingerprint of the host's listings, as the plug-in logs it.
const HOST_LISTINGS: &str = "db93a72b";

/// Runs of every kind in a few flows: ended, lost, running, retried with and without a heartbeat, and
/// without any evidence. Their times and users repeat.
const RUNS: &str = "\
insert into flows_v3 (flow_id, ts_epoch) select 'F' || i, 0 from generate_series(0, 7) i;
insert into runs_v3 (flow_id, run_number, run_id, user_name, ts_epoch, tags, system_tags, last_heartbeat_ts)
select 'F' || i % 7, i, case when i % 9 = 0 then 'id-' || i end, 'u' || i % 5,
       (extract(epoch from now())::bigint - 90000 - i % 50) * 1000,
       case when i % 4 = 0 then '[\"a\"]'::jsonb else '[]' end,
       case when i % 3 = 0 then '[]'::jsonb else jsonb_build_array('user:u' || i % 5) end,
       case i % 8 when 0 then null
                  when 1 then extract(epoch from now())::bigint - 10000 - i % 20
                  when 2 then extract(epoch from now())::bigint + 100
                  else extract(epoch from now())::bigint - i % 30 end
  from generate_series(1, 400) i;
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
select flow_id, run_number, 'end', 1, 'attempt_ok', case when run_number % 3 = 0 then 'False' else 'True' end, '',
       ts_epoch + 1000 * (run_number % 40)
  from runs_v3
 where run_number % 5 in (0, 1);
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
select flow_id, run_number, 'end', 1, 'attempt', '1', '', ts_epoch + 100000
  from runs_v3
 where run_number % 15 = 0;";

/// Some runs change, and their events stay in the queue.
const CHANGES: &str = "\
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
select flow_id, run_number, 'end', 1, 'attempt_ok', case when run_number % 2 = 0 then 'False' else 'True' end, '',
       ts_epoch + 3000000 + run_number
  from runs_v3
 where run_number % 11 = 0;
update runs_v3
   set last_heartbeat_ts = extract(epoch from now())::bigint
 where run_number % 13 = 0;";

const STATUSES: [&str; 3] = ["running", "completed", "failed"];

fn one<'a>(random: &mut StdRng, of: &[&'a str]) -> &'a str {
    of[random.random_range(0..of.len())]
}

/// Random arguments of a listing, as the backend's requests make them.
fn listing(random: &mut StdRng) -> Value {
    let (mut conditions, mut values) = (Vec::new(), Vec::new());
    if random.random_bool(0.3) {
        conditions.push("flow_id = %s".to_owned());
        values.push(json!(format!("F{}", random.random_range(0..8))));
    }
    if random.random_bool(0.6) {
        let wanted: Vec<&str> = STATUSES
            .into_iter()
            .filter(|_| random.random_bool(0.5))
            .collect();
        let parts: Vec<&str> = wanted.iter().map(|_| "\"status\" = %s").collect();
        if !parts.is_empty() {
            conditions.push(format!("({})", parts.join(" OR ")));
            values.extend(wanted.into_iter().map(Value::from));
        }
    }
    if random.random_bool(0.2) {
        conditions.push("(\"status\" != %s)".to_owned());
        values.push(one(random, &STATUSES).into());
    }
    if random.random_bool(0.2) {
        conditions.push(format!("(\"user\" {} %s)", one(random, &["=", "!="])));
        values.push(json!(format!("u{}", random.random_range(0..5))));
    }
    if random.random_bool(0.3) {
        let column = one(random, &["finished_at", "ts_epoch", "duration"]);
        let bound = match column {
            "duration" => json!(random.random_range(-5_000_000..5_000_000)),
            _ => json!(0),
        };
        conditions.push(format!(
            "(\"{column}\" {} %s)",
            one(random, &[">=", "<", "="])
        ));
        values.push(bound);
    }
    if random.random_bool(0.2) {
        conditions.push("tags||system_tags ? %s".to_owned());
        values.push(json!("a"));
    }
    let mut order: Vec<String> = Vec::new();
    for _ in 0..random.random_range(0..3) {
        let column = one(
            random,
            &[
                "ts_epoch",
                "finished_at",
                "duration",
                "status",
                "user",
                "flow_id",
                "run",
            ],
        );
        order.push(format!("\"{column}\" {}", one(random, &["ASC", "DESC"])));
    }
    // Without it, which of equal runs are on a page is not determined.
    order.push("\"run_number\" DESC".to_owned());
    let group = random.random_range(0..5);
    json!({
        "conditions": conditions,
        "values": values,
        "order": order,
        "limit": random.random_range(0..40),
        "offset": random.random_range(0..2) * random.random_range(0..60),
        "groups": match group {
            0 => json!(["\"flow_id\""]),
            1 => json!(["\"user\""]),
            _ => Value::Null,
        },
        "group_limit": random.random_range(0..8),
    })
}

/// The rows of an answer, by the columns that the UI shows, and whether the joins gave it.
async fn rows(service: &mut Running, listing: &Value) -> (Vec<Value>, bool) {
    let answer = service.question(&json!({ "listing": listing })).await;
    assert_eq!(answer["code"], 200, "{listing}: {answer}");
    let columns = [
        "flow_id",
        "run_number",
        "run",
        "user",
        "ts_epoch",
        "status",
        "finished_at",
        "duration",
        "last_heartbeat_ts",
        "tags",
    ];
    let rows = answer["body"].as_array().expect("a list").iter();
    let shown = rows.map(|row| columns.iter().map(|column| row[column].clone()).collect());
    let joined = answer["joined"].as_bool().expect("it says who answered");
    (shown.collect(), joined)
}

async fn migrate_ui(database: &Database) {
    let launch = Launch::on(database).args(&["migrate", "up", "--ui"]);
    launch.succeed().await;
}

fn with_plugin(database: &Database) -> Service {
    Service::on(database).env("STATUS_INDEXER_PLUGIN_ACCEPT_UI", HOST_LISTINGS)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_listing_has_the_rows_of_the_joins_in_their_order() {
    let seed = Seed::from_env();
    let mut random = seed.generator(0);
    let database = Database::fresh().await;
    migrate_ui(&database).await;
    let daemon = Launch::on(&database).start().await;
    let client = database.client().await;
    client.batch_execute(RUNS).await.expect("valid SQL");
    testkit::drift::eventually_no_drift(&client).await;
    let mut column = with_plugin(&database).start().await;
    column.says(ON).await;
    let mut joins = Service::on(&database)
        .env("STATUS_INDEXER_PLUGIN", "off")
        .start()
        .await;
    let (mut by_column, mut nonempty) = (0, 0);
    for case in 0..500 {
        if case == 250 {
            daemon.kill9().await;
            client.batch_execute(CHANGES).await.expect("valid SQL");
        }
        let listing = listing(&mut random);
        let (seen, joined) = rows(&mut column, &listing).await;
        let (expected, _) = rows(&mut joins, &listing).await;
        assert_eq!(seen, expected, "{seed}, case {case}: {listing}");
        by_column += usize::from(!joined);
        nonempty += usize::from(!seen.is_empty());
    }
    let said = column.said();
    assert!(!said.iter().any(|line| line.contains("failed")), "{said:?}");
    println!("{by_column} of 500 listings by the column, {nonempty} with rows");
    assert!(by_column > 250, "{by_column}");
    assert!(nonempty > 250, "{nonempty}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_ends_of_runs_or_a_known_backend_the_joins_answer() {
    let database = Database::fresh().await;
    let client = database.client().await;
    client.batch_execute(RUNS).await.expect("valid SQL");
    let daemon = Launch::on(&database).start().await;
    let failed = json!({
        "conditions": ["(\"status\" = %s)"], "values": ["failed"], "order": ["\"run_number\" DESC"], "limit": 5,
    });
    let mut unknown = Service::on(&database).start().await;
    assert!(rows(&mut unknown, &failed).await.1);
    unknown
        .eventually_said(&format!(
            "inactive for the web UI: its listings have the unknown fingerprint {HOST_LISTINGS}"
        ))
        .await;
    let mut service = with_plugin(&database).start().await;
    service.says(ON).await;
    let (before, joined) = rows(&mut service, &failed).await;
    assert!(joined);
    service
        .eventually_said("run `status-indexer migrate up --ui`")
        .await;

    // The column becomes invalid, and valid again when each run's end is stored.
    migrate_ui(&database).await;
    eventually(testkit::drift::SOON, "the column answers", async || {
        !rows(&mut service, &failed).await.1
    })
    .await;
    assert_eq!(rows(&mut service, &failed).await, (before.clone(), false));
    // A single run, and a page that the joins answer as fast.
    for other in [
        json!({"conditions": ["run_number = %s"], "values": [1], "fetch_single": true}),
        json!({"order": ["\"ts_epoch\" DESC"], "limit": 5}),
    ] {
        assert!(rows(&mut service, &other).await.1, "{other}");
    }

    // Removed between two checks.
    daemon.kill9().await;
    let removed = Launch::on(&database)
        .args(&["migrate", "down"])
        .output()
        .await;
    assert!(removed.status.success());
    assert_eq!(rows(&mut service, &failed).await, (before, true));
}
