//! Random writers for some seconds, while daemons are killed and frozen.

use std::time::{Duration, Instant};

use rand::RngExt as _;

use testkit::daemon::{Daemon, Launch};
use testkit::database::Database;
use testkit::drift::eventually_no_drift;
use testkit::random_writers::RandomWriters;
use testkit::seed::Seed;
use testkit::wait::eventually;

const LENGTH: Duration = Duration::from_secs(12);

/// A cutoff that runs pass during the test.
const CUTOFF: &str = "4";

fn launch(database: &Database) -> Launch {
    Launch::on(database).env("RUN_INACTIVE_CUTOFF_TIME", CUTOFF)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_status_is_right_after_two_daemons_were_killed_and_frozen_at_random() {
    let seed = Seed::from_env();
    let mut random = seed.generator(0);
    let database = Database::fresh().await;
    database.writer().await.insert_flow("F").await;
    let mut daemons: Vec<Daemon> = vec![
        launch(&database).start().await,
        launch(&database).start().await,
    ];
    let traffic = RandomWriters::start(&database.config(), &seed, 4, Duration::from_millis(4));
    let start = Instant::now();
    let (mut kills, mut freezes) = (0, 0);
    while start.elapsed() < LENGTH {
        let before = traffic.written();
        let pause = random.random_range(20..250);
        eventually(Duration::from_secs(30), "there is load", async || {
            traffic.written() > before + pause
        })
        .await;
        let victim = random.random_range(0..daemons.len());
        if random.random_bool(0.5) {
            daemons[victim].kill9().await;
            daemons[victim] = launch(&database).spawn();
            kills += 1;
        } else {
            daemons[victim].freeze().await;
            let length = random.random_range(20..500);
            eventually(Duration::from_secs(30), "it stays frozen", async || {
                traffic.written() > before + pause + length
            })
            .await;
            daemons[victim].thaw();
            freezes += 1;
        }
    }
    let written = traffic.written();
    traffic.stop().await;
    println!("{written} writes, {kills} kills, {freezes} freezes");
    eventually_no_drift(&database.client().await).await;
    for daemon in &daemons {
        daemon.ready().await;
        assert!(daemon.terminate().await.success());
    }
}
