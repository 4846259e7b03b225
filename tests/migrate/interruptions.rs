//! A migration that is killed or stopped at any moment, and completed by the next one.

use rand::RngExt as _;
use rand::rngs::StdRng;
use testkit::daemon::Launch;
use testkit::database::Database;
use testkit::seed::Seed;
use testkit::wait::eventually;

use super::{
    SOON, STEPS, check_complete, dump, execute, fill, migrate, number, role, same, succeeded,
};

fn seeded() -> StdRng {
    let seed = Seed::from_env();
    println!("{seed}");
    seed.generator(0)
}

/// Starts a command and kills it at a random moment.
async fn kill_midway(database: &Database, args: &[&str], rng: &mut StdRng) {
    let observer = database.client().await;
    let daemon = Launch::on(database).args(args).spawn();
    // Waits for a step, and then a little longer. For `down` the triggers show the progress.
    let target = rng.random_range(0..=STEPS);
    let progress = if args.contains(&"down") {
        "select case when to_regclass('status_indexer.state') is null then 16
                     else 14 - (select count(*) from pg_trigger where tgname like 'status\\_indexer%') end"
    } else {
        "select count(*) from status_indexer.schema_history"
    };
    for _ in 0..400 {
        // The table may not exist yet, or be dropped meanwhile.
        let seen = observer.query_one(progress, &[]).await;
        if seen.is_ok_and(|row| row.get::<_, i64>(0) >= target) {
            break;
        }
    }
    for _ in 0..rng.random_range(0..100) {
        number(&observer, "select 1::bigint").await;
    }
    daemon.kill9().await;
    // The server finishes or aborts what its sessions were doing.
    eventually(SOON, "the sessions of the killed process end", async || {
        let left = "select count(*) from pg_stat_activity
                     where datname = current_database() and application_name = 'status-indexer'";
        number(&observer, left).await == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_up_that_was_killed_is_completed_by_the_next() {
    let mut rng = seeded();
    let database = Database::fresh().await;
    fill(&database.client().await, 20_000).await;
    let before = dump(&database).await;
    for _ in 0..8 {
        for _ in 0..rng.random_range(1..4) {
            kill_midway(&database, &["migrate", "up"], &mut rng).await;
        }
        succeeded(&migrate(&database, &["up"]).await);
        check_complete(&database).await;
        succeeded(&migrate(&database, &["down"]).await);
        same(&before, &dump(&database).await);
    }
    // `down` from wherever `up` was killed.
    for _ in 0..4 {
        kill_midway(&database, &["migrate", "up"], &mut rng).await;
        succeeded(&migrate(&database, &["down"]).await);
        same(&before, &dump(&database).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_down_that_was_killed_is_completed_by_down_and_undone_by_up() {
    let mut rng = seeded();
    let database = Database::fresh().await;
    let client = database.client().await;
    fill(&client, 5_000).await;
    let role = role(&database, "indexer").await;
    let before = dump(&database).await;
    let up = ["up", "--grant-to", role.as_str()];
    for _ in 0..8 {
        succeeded(&migrate(&database, &up).await);
        let mark_valid = "update status_indexer.state set valid_since = now()";
        execute(&client, mark_valid).await;
        kill_midway(&database, &["migrate", "down"], &mut rng).await;
        if rng.random() {
            let triggers = "select count(*) from pg_trigger where tgname like 'status\\_indexer%'";
            let whole = number(&client, triggers).await == 5;
            succeeded(&migrate(&database, &up).await);
            let valid = "select count(*) from status_indexer.state where valid_since is not null";
            // Without triggers, writes may have been missed.
            assert_eq!(number(&client, valid).await, i64::from(whole));
            check_complete(&database).await;
        }
        succeeded(&migrate(&database, &["down"]).await);
        same(&before, &dump(&database).await);
        succeeded(&migrate(&database, &["down"]).await);
        same(&before, &dump(&database).await);
    }
}

#[tokio::test]
async fn up_stops_on_a_signal_and_continues_later() {
    let database = Database::fresh().await;
    let holder = database.client().await;
    for (hold, key) in [
        ("begin; select count(*) from runs_v3", "holders"),
        (
            "begin isolation level repeatable read; select 1",
            "progress",
        ),
    ] {
        execute(&holder, hold).await;
        let up = Launch::on(&database).args(&["migrate", "up"]).spawn();
        up.logged("the wait", |line| line.get(key).is_some()).await;
        assert_eq!(up.terminate().await.code(), Some(1));
        execute(&holder, "commit").await;
    }
    let invalid = "select count(*) from pg_index where not indisvalid";
    assert_eq!(
        number(&holder, invalid).await,
        1,
        "a build that was aborted"
    );
    succeeded(&migrate(&database, &["up"]).await);
    assert_eq!(number(&holder, invalid).await, 0);
    check_complete(&database).await;
}
