//! The view, while writers write what they may write and daemons are killed and frozen.

use std::time::Duration;

use super::migrate;
use super::mutation::mutate;
use testkit::database::Database;
use testkit::read_storm::{self, CUTOFF_SECS};
use testkit::seed::Seed;

#[tokio::test(flavor = "multi_thread")]
async fn no_reader_sees_a_status_other_than_the_definitions() {
    let seed = Seed::from_env();
    let database = Database::fresh().await;
    migrate(&database, CUTOFF_SECS).await;
    let report = read_storm::run(&database, &seed, Duration::from_secs(10)).await;
    println!("{report:?}");
    assert!(report.differences.is_empty(), "{seed}: {report:#?}");
    assert!(
        report.comparisons > 3_000 && report.pages > 20,
        "{report:?}"
    );
}

/// What a programming error would change: in which function or view, which text, and by what.
const MUTATIONS: [(&str, &str, &str, &str); 4] = [
    (
        "the queue is not looked at",
        "queued",
        "where q.id >= (",
        "where false and q.id >= (",
    ),
    (
        "the bound is that of the last deadline",
        "publish_read_bounds",
        "select min(w.expires_at)",
        "select max(w.expires_at)",
    ),
    (
        "the column is read outside the snapshot",
        "parts",
        "r.run_status as stored_status",
        "status_indexer.column_now(r.flow_id, r.run_number) as stored_status",
    ),
    (
        "the column counts as exact while events wait",
        "read_state",
        "no_deadline AND",
        "no_deadline OR",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_mutation_of_the_view_is_found() {
    let seed = Seed::from_env();
    for (what, name, text, replacement) in MUTATIONS {
        let database = Database::fresh().await;
        migrate(&database, CUTOFF_SECS).await;
        let client = database.client().await;
        super::run(
            &client,
            "create function status_indexer.column_now(flow text, run integer) returns text
             language sql volatile as $$
               select run_status from runs_v3 where flow_id = flow and run_number = run
             $$",
        )
        .await;
        mutate(&client, name, text, replacement).await;
        let report = read_storm::run(&database, &seed, Duration::from_secs(60)).await;
        assert!(
            !report.differences.is_empty(),
            "{seed}: not found: {what}: {report:?}"
        );
    }
}
