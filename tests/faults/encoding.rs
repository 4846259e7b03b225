//! Texts that the server cannot send, in a database whose encoding is not UTF8: the runs that have one
//! get their statuses too, and no other run waits for them.

use std::time::Duration;

use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::wait::eventually_eq;
use tokio_postgres::Client;

use super::{run, text_of};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs 1 and 2 are of a flow whose name is not UTF-8; the user of run 3 is not, and the value of run 4
/// is not once it is cut.
const RUNS: &str = r"
insert into flows_v3 (flow_id, ts_epoch) values (E'bad\xff', 1), ('F', 1);
insert into runs_v3 (flow_id, run_number, user_name, ts_epoch, last_heartbeat_ts, tags, system_tags)
select f, n, u, n, extract(epoch from clock_timestamp())::bigint, '[]', '[]'
  from (values (E'bad\xff', 1, 'u'), (E'bad\xff', 2, 'u'), ('F', 3, E'u\xfe'), ('F', 4, 'u'), ('F', 5, 'u'))
       r (f, n, u)";

/// The end steps of some runs.
const ENDS: &str = r"
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
values (E'bad\xff', 1, 'end', 1, 'attempt_ok', 'True', 't', 1),
       ('F', 3, 'end', 1, 'attempt_ok', 'True', 't', 1),
       ('F', 4, 'end', 1, 'attempt_ok', repeat('x', 79) || E'\xc3\xa9', 't', 1)";

async fn statuses(client: &Client) -> Vec<String> {
    let rows = client
        .query("select run_status from runs_v3 order by run_number", &[])
        .await;
    let rows = rows.expect("the column exists");
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_with_texts_that_cannot_be_sent_stop_nothing() {
    let database = Database::sql_ascii().await;
    let client = database.client().await;
    let daemon = Launch::on(&database)
        .env("RUN_INACTIVE_CUTOFF_TIME", "8")
        .arg("--reconcile-interval=1")
        .start()
        .await;
    daemon.ready().await;
    run(&client, RUNS).await;
    run(&client, ENDS).await;
    // The heartbeats of runs 2, 4 and 5 are lost.
    let expected = ["completed", "failed", "completed", "failed", "failed"];
    eventually_eq(
        TIMEOUT,
        "all statuses are right",
        expected.map(str::to_owned).to_vec(),
        async || statuses(&client).await,
    )
    .await;
    let depth = "select count(*) from status_indexer.queue";
    eventually_eq(TIMEOUT, "the queue is empty", 0_i64, async || {
        let row = client.query_one(depth, &[]).await;
        row.expect("the queue exists").get(0)
    })
    .await;

    // A repair, and a page with a text that cannot be sent.
    run(&client, "update runs_v3 set run_status = 'failed'").await;
    eventually_eq(
        TIMEOUT,
        "run 3 is repaired",
        "completed".to_owned(),
        async || statuses(&client).await.swap_remove(2),
    )
    .await;
    let url = format!(
        "http://{}/flows/F/runs?status=completed&_limit=5",
        daemon.api().await
    );
    let http = reqwest::Client::builder().no_proxy().build();
    let answer = http.expect("a plain client").get(&url).send().await;
    let page = answer.expect("the API answers").text().await;
    let page = page.expect("a text");
    assert!(page.contains(r#""user_name":"u?""#), "{page}");
    assert!(daemon.terminate().await.success());

    let output = Launch::on(&database).args(&["verify"]).output().await;
    assert!(output.status.success(), "{}", text_of(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_evaluates_runs_whose_flow_cannot_be_sent() {
    let database = Database::sql_ascii().await;
    let client = database.client().await;
    run(&client, RUNS).await;
    run(&client, "update runs_v3 set last_heartbeat_ts = 1").await;
    run(&client, ENDS).await;
    let daemon = Launch::on(&database).start().await;
    daemon.ready().await;
    let expected = ["completed", "failed", "completed", "failed", "failed"];
    assert_eq!(statuses(&client).await, expected);
    let url = format!("http://{}/flows/F/runs/4/status", daemon.api().await);
    let http = reqwest::Client::builder().no_proxy().build();
    let answer = http.expect("a plain client").get(&url).send().await;
    assert_eq!(answer.expect("the API answers").status(), 200);
    assert!(daemon.terminate().await.success());
}
