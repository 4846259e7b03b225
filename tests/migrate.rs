//! The migrator against everything that may happen to it: repetition, company, death, traffic,
//! locks, odd names, other roles. What it promises is that each run leaves all or nothing of a step,
//! and that `down` leaves the database as it was found.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::support::daemon::Launch;
use crate::support::database::{Database, connect};
use crate::support::wait::{eventually, eventually_eq};

const SOON: Duration = Duration::from_secs(20);

/// Steps that the history tells of, that of the schema included.
const STEPS: i64 = 15;

async fn migrate(database: &Database, args: &[&str]) -> Output {
    migrate_as(database.url(), database, args, &[]).await
}

async fn migrate_as(url: &str, database: &Database, args: &[&str], env: &[(&str, &str)]) -> Output {
    let args: Vec<&str> = ["migrate"].iter().chain(args).copied().collect();
    let mut launch = Launch::on(database).args(&args).env("DATABASE_URL", url);
    for (name, value) in env {
        launch = launch.env(name, value);
    }
    launch.output().await
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

/// The text of a refusal.
#[track_caller]
fn refused(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{}", text(output));
    text(output)
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).replace("\\\"", "\"")
}

/// All that a dump tells of the schema, owners and privileges included.
async fn dump(database: &Database) -> String {
    let client = database.client().await;
    let row = client
        .query_one("select setting from pg_config where name = 'BINDIR'", &[])
        .await
        .expect("the server knows where its programs are");
    let program = format!("{}/pg_dump", row.get::<_, &str>(0));
    let output = tokio::process::Command::new(program)
        .args(["--schema-only", "--dbname", database.url()])
        .output()
        .await
        .expect("pg_dump stands beside the server");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("the database is UTF-8");
    // Newer ones put a random key around the dump.
    let kept = text
        .lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    kept.collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn same(before: &str, after: &str) {
    if before != after {
        let new: Vec<&str> = after
            .lines()
            .filter(|line| !before.contains(line))
            .collect();
        let gone: Vec<&str> = before
            .lines()
            .filter(|line| !after.contains(line))
            .collect();
        panic!("not as it was found:\nnew {new:#?}\ngone {gone:#?}");
    }
}

async fn execute(client: &Client, sql: &str) {
    let outcome = client.batch_execute(sql).await;
    outcome.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

async fn number(client: &Client, sql: &str) -> i64 {
    client
        .query_one(sql, &[])
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
        .get(0)
}

/// A login role of this database's test.
async fn role(database: &Database, name: &str) -> String {
    let role = format!("{name}_{}", database.name());
    let client = database.client().await;
    execute(&client, &format!("create role {role} login")).await;
    role
}

fn url_of(database: &Database, role: &str) -> String {
    database.url().replace("postgres@", &format!("{role}@"))
}

/// The metadata service's own role: it owns the tables and may make more.
async fn owner(database: &Database) -> String {
    let role = role(database, "app").await;
    let client = database.client().await;
    for table in ["flows", "runs", "steps", "tasks", "metadata", "artifact"] {
        execute(&client, &format!("alter table {table}_v3 owner to {role}")).await;
    }
    execute(
        &client,
        &format!("grant usage, create on schema public to {role}"),
    )
    .await;
    role
}

async fn fill(client: &Client, runs: u32) {
    execute(
        client,
        &format!(
            "insert into flows_v3 (flow_id, ts_epoch) values ('Old', 0);
             insert into runs_v3 (flow_id, ts_epoch) select 'Old', n from generate_series(1, {runs}) n"
        ),
    )
    .await;
}

/// What is installed works: evidence fires a trigger, and `drain` writes the status.
async fn works(client: &Client, runs: &str, metadata: &str) {
    execute(
        client,
        &format!(
            "insert into flows_v3 (flow_id, ts_epoch) values ('Works', 0) on conflict do nothing;
             delete from {runs} where flow_id = 'Works';
             delete from {metadata} where flow_id = 'Works';
             insert into {runs} (flow_id, run_number, ts_epoch) values ('Works', 1, 0);
             insert into {metadata} (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
             values ('Works', 1, 'end', 1, 'attempt_ok', 'True', 'x', 1)"
        ),
    )
    .await;
    execute(client, "select status_indexer.drain(0, 1000000, null)").await;
    let status: String = client
        .query_one(
            &format!("select run_status from {runs} where flow_id = 'Works'"),
            &[],
        )
        .await
        .expect("the column is there")
        .get(0);
    assert_eq!(status, "completed");
}

async fn is_whole(database: &Database) {
    succeeded(&migrate(database, &["status"]).await);
    let client = database.client().await;
    let steps = "select count(*) from status_indexer.schema_history";
    assert_eq!(number(&client, steps).await, STEPS);
    works(&client, "runs_v3", "metadata_v3").await;
}

#[tokio::test]
async fn a_second_up_changes_nothing() {
    let database = Database::fresh().await;
    succeeded(&migrate(&database, &[]).await);
    let once = dump(&database).await;
    let said = succeeded(&migrate(&database, &["up"]).await);
    assert!(said.contains("nothing to do"), "{said}");
    same(&once, &dump(&database).await);
    is_whole(&database).await;
}

#[tokio::test]
async fn several_at_once_install_it_once() {
    let database = Database::fresh().await;
    fill(&database.client().await, 5_000).await;
    let up = || async { migrate(&database, &["up"]).await };
    let (a, b, c) = tokio::join!(up(), up(), up());
    for output in [a, b, c] {
        succeeded(&output);
    }
    is_whole(&database).await;
}

/// Starts a command and kills it somewhere on its way.
async fn killed(database: &Database, args: &[&str], rng: &mut StdRng) {
    let observer = database.client().await;
    let daemon = Launch::on(database).args(args).spawn();
    // Up to a step, and then a little further. Down has fewer marks: there, the triggers.
    let target = rng.random_range(0..=STEPS);
    let progress = if args.contains(&"down") {
        "select case when to_regclass('status_indexer.state') is null then 15
                     else 14 - (select count(*) from pg_trigger where tgname like 'status\\_indexer%') end"
    } else {
        "select count(*) from status_indexer.schema_history"
    };
    for _ in 0..400 {
        // It may not be there yet, or vanish while it is being looked at.
        let seen = observer.query_one(progress, &[]).await;
        if seen.is_ok_and(|row| row.get::<_, i64>(0) >= target) {
            break;
        }
    }
    for _ in 0..rng.random_range(0..100) {
        number(&observer, "select 1::bigint").await;
    }
    daemon.kill9().await;
    // What its sessions were about, the server finishes or gives up.
    eventually(SOON, "the killed one's sessions end", async || {
        let left = "select count(*) from pg_stat_activity
                     where datname = current_database() and application_name = 'status-indexer'";
        number(&observer, left).await == 0
    })
    .await;
}

fn seeded(name: &str) -> StdRng {
    let seed = std::env::var("MIGRATE_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(rand::random);
    println!("{name}: repeat with MIGRATE_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_up_that_was_killed_anywhere_is_finished_by_the_next() {
    let mut rng = seeded("up");
    let database = Database::fresh().await;
    fill(&database.client().await, 20_000).await;
    let before = dump(&database).await;
    for _ in 0..8 {
        for _ in 0..rng.random_range(1..4) {
            killed(&database, &["migrate", "up"], &mut rng).await;
        }
        succeeded(&migrate(&database, &["up"]).await);
        is_whole(&database).await;
        succeeded(&migrate(&database, &["down"]).await);
        same(&before, &dump(&database).await);
    }
    // Straight down from wherever it was.
    for _ in 0..4 {
        killed(&database, &["migrate", "up"], &mut rng).await;
        succeeded(&migrate(&database, &["down"]).await);
        same(&before, &dump(&database).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_down_that_was_killed_anywhere_is_finished_or_undone() {
    let mut rng = seeded("down");
    let database = Database::fresh().await;
    let client = database.client().await;
    fill(&client, 5_000).await;
    let role = role(&database, "indexer").await;
    let before = dump(&database).await;
    let up = ["up", "--grant-to", role.as_str()];
    for _ in 0..8 {
        succeeded(&migrate(&database, &up).await);
        let bless = "update status_indexer.state set valid_since = now()";
        execute(&client, bless).await;
        killed(&database, &["migrate", "down"], &mut rng).await;
        if rng.random() {
            let triggers = "select count(*) from pg_trigger where tgname like 'status\\_indexer%'";
            let whole = number(&client, triggers).await == 5;
            succeeded(&migrate(&database, &up).await);
            let believed =
                "select count(*) from status_indexer.state where valid_since is not null";
            // What was written without triggers was not heard.
            assert_eq!(number(&client, believed).await, i64::from(whole));
            is_whole(&database).await;
        }
        succeeded(&migrate(&database, &["down"]).await);
        same(&before, &dump(&database).await);
        succeeded(&migrate(&database, &["down"]).await);
        same(&before, &dump(&database).await);
    }
}

/// Writes as the service does until told to stop; the longest that one statement took.
async fn write(client: Client, statements: &[&str], stop: Arc<AtomicBool>) -> (Duration, usize) {
    let (mut longest, mut count) = (Duration::ZERO, 0);
    while !stop.load(Ordering::Relaxed) {
        for statement in statements {
            let start = Instant::now();
            execute(&client, statement).await;
            longest = longest.max(start.elapsed());
            count += 1;
        }
    }
    (longest, count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn writers_hardly_wait_while_it_goes_up_and_down() {
    let database = Database::fresh().await;
    fill(&database.client().await, 60_000).await;
    let stop = Arc::new(AtomicBool::new(false));
    let runs: &[&str] = &[
        "insert into runs_v3 (flow_id, ts_epoch, last_heartbeat_ts) values ('Old', 1, extract(epoch from now())::bigint)",
        "update runs_v3 set last_heartbeat_ts = extract(epoch from now())::bigint
          where flow_id = 'Old' and run_number = (random() * 1000)::int",
    ];
    let metadata: &[&str] = &[
        "insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
         values ('Old', (random() * 1000)::int, 'end', 1, 'attempt_ok', 'True', 'x', 1)",
        "select count(*) from metadata_v3 where flow_id = 'Old' and run_number = 5",
    ];
    let on_runs = tokio::spawn(write(database.client().await, runs, Arc::clone(&stop)));
    let on_metadata = tokio::spawn(write(database.client().await, metadata, Arc::clone(&stop)));
    for args in [["up"], ["down"], ["up"]] {
        succeeded(&migrate(&database, &args).await);
    }
    stop.store(true, Ordering::Relaxed);
    for writer in [on_runs, on_metadata] {
        let (longest, count) = writer.await.expect("no write fails");
        assert!(count > 100, "it wrote all the while: {count}");
        assert!(
            longest < Duration::from_millis(1_000),
            "a writer waited {longest:?}"
        );
    }
    is_whole(&database).await;
}

#[tokio::test]
async fn up_waits_for_a_lock_without_being_in_the_way_and_says_whose_it_is() {
    let database = Database::fresh().await;
    let (holder, writer) = (database.client().await, database.writer().await);
    execute(&holder, "begin; select count(*) from runs_v3").await;
    let pid = number(&holder, "select pg_backend_pid()::bigint").await;
    let up = Launch::on(&database).args(&["migrate", "up"]).spawn();
    let line = up
        .logged("who holds the lock", |line| line.get("holders").is_some())
        .await;
    let holders = line["holders"].as_str().unwrap_or_default();
    assert!(holders.contains(&format!("pid {pid} ")), "{line}");
    writer.insert_flow("F").await;
    let start = Instant::now();
    for _ in 0..20 {
        writer.insert_run("F", None).await;
    }
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    execute(&holder, "commit").await;
    assert!(up.exit().await.success());
    is_whole(&database).await;
}

#[tokio::test]
async fn an_index_waits_for_an_old_snapshot_and_says_whose_it_is() {
    let database = Database::fresh().await;
    let holder = database.client().await;
    let pid = number(&holder, "select pg_backend_pid()::bigint").await;
    execute(&holder, "begin isolation level repeatable read; select 1").await;
    let up = Launch::on(&database).args(&["migrate", "up"]).spawn();
    let line = up
        .logged("what the index waits for", |line| {
            line.get("progress").is_some()
        })
        .await;
    let progress = line["progress"].as_str().unwrap_or_default();
    assert!(
        progress.contains(&format!("waiting for pid {pid}")),
        "{line}"
    );
    execute(&holder, "commit").await;
    assert!(up.exit().await.success());
    is_whole(&database).await;
}

#[tokio::test]
async fn up_stops_when_it_is_told_to_and_goes_on_later() {
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
        up.logged("that it waits", |line| line.get(key).is_some())
            .await;
        assert_eq!(up.terminate().await.code(), Some(1));
        execute(&holder, "commit").await;
    }
    let invalid = "select count(*) from pg_index where not indisvalid";
    assert_eq!(
        number(&holder, invalid).await,
        1,
        "a build that was given up"
    );
    succeeded(&migrate(&database, &["up"]).await);
    assert_eq!(number(&holder, invalid).await, 0);
    is_whole(&database).await;
}

#[tokio::test]
async fn what_was_dropped_or_left_invalid_is_made_again() {
    let database = Database::fresh().await;
    let client = database.client().await;
    succeeded(&migrate(&database, &["up"]).await);
    let whole = dump(&database).await;
    let bless = "update status_indexer.state set valid_since = now()";
    let believed = "select count(*) from status_indexer.state where valid_since is not null";
    for (damage, complaint, stays_believable) in [
        (
            "drop index status_indexer_running",
            "status_indexer_running: missing",
            true,
        ),
        (
            "update pg_index set indisvalid = false where indexrelid = 'status_indexer_listing'::regclass",
            "status_indexer_listing: INVALID",
            true,
        ),
        (
            "drop trigger status_indexer_insert on metadata_v3",
            "status_indexer_insert on public.metadata_v3: MISSING",
            false,
        ),
        (
            "drop trigger status_indexer_heartbeat on runs_v3",
            "status_indexer_heartbeat on public.runs_v3: MISSING",
            false,
        ),
        (
            "create function public.enqueue_row() returns trigger language plpgsql as 'begin return null; end';
             drop trigger status_indexer_insert on runs_v3;
             create trigger status_indexer_insert after insert on runs_v3
               for each row execute function public.enqueue_row()",
            "status_indexer_insert on public.runs_v3: REPLACED",
            false,
        ),
    ] {
        execute(&client, bless).await;
        execute(&client, damage).await;
        let told = refused(&migrate(&database, &["status"]).await, 1);
        assert!(told.contains(complaint), "{damage}: {told}");
        succeeded(&migrate(&database, &["up"]).await);
        execute(&client, "drop function if exists public.enqueue_row()").await;
        same(&whole, &dump(&database).await);
        assert_eq!(
            number(&client, believed).await,
            i64::from(stays_believable),
            "{damage}"
        );
        is_whole(&database).await;
    }
    execute(
        &client,
        "alter table runs_v3 disable trigger status_indexer_insert",
    )
    .await;
    let told = refused(&migrate(&database, &["status"]).await, 1);
    assert!(
        told.contains("status_indexer_insert on public.runs_v3: DISABLED"),
        "{told}"
    );
}

#[tokio::test]
async fn a_trigger_counts_only_if_it_fires_and_executes_the_installed_function() {
    const STATE: &str = "\
select state from status_indexer.triggers()
 where table_name = '\"public\".\"metadata_v3\"' and trigger_name = 'status_indexer_insert'";
    let database = Database::fresh().await;
    let client = database.client().await;
    succeeded(&migrate(&database, &["up"]).await);
    let count = "select count(*) from status_indexer.triggers() where state = 'enabled'";
    assert_eq!(number(&client, count).await, 5);
    for (damage, expected) in [
        ("select 1", "enabled"),
        (
            "alter table metadata_v3 disable trigger status_indexer_insert",
            "disabled",
        ),
        (
            "alter table metadata_v3 enable replica trigger status_indexer_insert",
            "disabled",
        ),
        (
            "alter table metadata_v3 enable always trigger status_indexer_insert",
            "enabled",
        ),
        (
            "drop trigger status_indexer_insert on metadata_v3",
            "missing",
        ),
        (
            "alter trigger status_indexer_insert on metadata_v3 rename to status_indexer_other",
            "missing",
        ),
        (
            "drop trigger status_indexer_insert on metadata_v3;
             create trigger status_indexer_insert after insert on metadata_v3
               for each row execute function status_indexer.enqueue_row()",
            "replaced",
        ),
        (
            "drop trigger status_indexer_insert on metadata_v3;
             create trigger status_indexer_insert after insert on flows_v3
               for each row execute function status_indexer.enqueue_evidence()",
            "missing",
        ),
        (
            "create or replace function status_indexer.enqueue_evidence() returns trigger
               language plpgsql security definer as 'begin return null; end'",
            "function replaced",
        ),
        (
            "create or replace function status_indexer.enqueue(flow_id text, run_number bigint)
               returns void language sql as ''",
            "function replaced",
        ),
    ] {
        execute(&client, &format!("begin; {damage}")).await;
        let row = client.query_one(STATE, &[]).await.expect("it is listed");
        assert_eq!(row.get::<_, &str>(0), expected, "{damage}");
        let row = client
            .query_one("select status_indexer.triggers_enabled()", &[])
            .await
            .expect("the function is there");
        assert_eq!(row.get::<_, bool>(0), expected == "enabled", "{damage}");
        execute(&client, "rollback").await;
    }
}

#[tokio::test]
async fn a_pass_without_all_triggers_never_makes_the_column_believable() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let client = writer.client();
    succeeded(&migrate(&database, &["up"]).await);
    let trigger = "trigger status_indexer_insert";
    execute(
        client,
        &format!("alter table metadata_v3 disable {trigger}"),
    )
    .await;
    // Behind the position of a pass that was under way, somebody writes and is not heard.
    writer.insert_flow("F").await;
    let run = writer.insert_run("F", Some(writer.now_secs().await)).await;
    execute(
        client,
        "update status_indexer.state set scan_flow_id = 'Z', scan_run_number = 1",
    )
    .await;
    writer.attempt_ok("F", run, "True", 1).await;
    let daemon = Launch::on(&database)
        .args(&["run", "--metrics-listen", "127.0.0.1:0"])
        .spawn();
    daemon
        .logged("that a trigger is missing", |line| {
            let message = line["message"].as_str().unwrap_or_default();
            message.contains("a trigger is missing or disabled")
        })
        .await;
    let position = "select count(scan_flow_id) from status_indexer.state";
    eventually_eq(SOON, "the pass is given up", 0, async || {
        number(client, position).await
    })
    .await;
    assert_eq!(daemon.get("/readyz").await.map(|(code, _)| code), Some(503));
    let believed = "select count(valid_since) from status_indexer.state";
    assert_eq!(number(client, believed).await, 0);
    assert_eq!(writer.status("F", run).await, "running");

    execute(client, &format!("alter table metadata_v3 enable {trigger}")).await;
    daemon.ready().await;
    assert_eq!(writer.status("F", run).await, "completed");
    assert!(daemon.terminate().await.success());
}

#[tokio::test]
async fn status_tells_what_is_there_by_text_and_exit_code() {
    let database = Database::fresh().await;
    let told = refused(&migrate(&database, &["status"]).await, 1);
    assert!(
        told.contains("not installed: run `status-indexer migrate up`"),
        "{told}"
    );
    assert!(
        told.contains("0014_running_index          pending"),
        "{told}"
    );
    let cutoff = [("RUN_INACTIVE_CUTOFF_TIME", "77")];
    succeeded(&migrate_as(database.url(), &database, &["up"], &cutoff).await);
    let output = migrate(&database, &["status"]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("WARNING"), "the server warned: {said}");
    let told = succeeded(&output);
    for part in [
        "tables      \"public\".\"runs_v3\", \"public\".\"metadata_v3\"",
        "0001_schema                 applied 2",
        "trigger     status_indexer_insert on public.metadata_v3: enabled",
        "index       status_indexer_listing: valid",
        "cutoff      77 s",
        "believable  no: the first pass has compared 0 runs",
    ] {
        assert!(told.contains(part), "{part} is not in\n{told}");
    }
    let daemon = Launch::on(&database)
        .env("RUN_INACTIVE_CUTOFF_TIME", "77")
        .start()
        .await;
    let told = succeeded(&migrate(&database, &["status"]).await);
    assert!(told.contains("believable  yes"), "{told}");
    assert!(daemon.terminate().await.success());
    succeeded(&migrate(&database, &["down"]).await);
    refused(&migrate(&database, &["status"]).await, 1);
}

// --- as it was found

#[tokio::test]
async fn down_leaves_the_database_as_it_was_found() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let app = owner(&database).await;
    let (fresh, reader) = (
        role(&database, "fresh").await,
        role(&database, "reader").await,
    );
    execute(&client, &format!("grant select on runs_v3 to {reader}")).await;
    let url = url_of(&database, &app);
    let make_schema = format!(
        "create schema status_indexer authorization {app};
         comment on schema status_indexer is 'made by hand';
         grant usage on schema status_indexer to {reader}"
    );
    let allow = format!("grant create on database {} to {app}", database.name());
    for setup in [allow.as_str(), make_schema.as_str()] {
        execute(&client, setup).await;
        for grantees in [
            &[][..],
            &[&fresh],
            &[&reader],
            &[&fresh, &reader],
            &[&app],
            &[&fresh, &fresh],
        ] {
            let before = dump(&database).await;
            succeeded(&migrate_as(&url, &database, &["up"], &[]).await);
            for grantee in grantees {
                let up = ["up", "--grant-to", grantee.as_str()];
                succeeded(&migrate_as(&url, &database, &up, &[]).await);
            }
            is_whole(&database).await;
            execute(&client, "truncate flows_v3, metadata_v3 cascade").await;
            succeeded(&migrate_as(&url, &database, &["down"], &[]).await);
            same(&before, &dump(&database).await);
            let may = |role: &str| {
                format!("select has_table_privilege('{role}', 'runs_v3', 'select')::int::bigint")
            };
            assert_eq!(number(&client, &may(&app)).await, 1, "an owner stays one");
            assert_eq!(number(&client, &may(&reader)).await, 1);
            assert_eq!(number(&client, &may(&fresh)).await, 0);
        }
    }
    succeeded(&migrate_as(&url, &database, &["down"], &[]).await);
}

#[tokio::test]
async fn down_keeps_what_others_made_in_the_schema_and_can_be_finished_later() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let before = dump(&database).await;
    succeeded(&migrate(&database, &["up"]).await);
    execute(
        &client,
        "create view public.mine as select * from status_indexer.run_status",
    )
    .await;
    let told = refused(&migrate(&database, &["down"]).await, 1);
    assert!(told.contains("view public.mine depends on"), "{told}");
    // Its triggers are gone already, so nobody may believe the column.
    let believed = "select count(*) from status_indexer.state where valid_since is not null";
    assert_eq!(number(&client, believed).await, 0);
    execute(&client, "drop view mine").await;
    succeeded(&migrate(&database, &["down"]).await);
    same(&before, &dump(&database).await);
}

// --- names

struct Names {
    /// Statements that give upstream's tables these names.
    rename: &'static str,
    /// As a statement would have them.
    runs: &'static str,
    metadata: &'static str,
    env: &'static [(&'static str, &'static str)],
}

const NAMES: [Names; 5] = [
    Names {
        rename: "alter table runs_v3 rename to runs_of_us; alter table metadata_v3 rename to metadata_of_us",
        runs: "runs_of_us",
        metadata: "metadata_of_us",
        env: &[("DB_TABLE_NAME_RUNS", "Runs_Of_US"), ("DB_TABLE_NAME_METADATA", "METADATA_of_us")],
    },
    Names {
        rename: "alter table runs_v3 rename to \"Runs V3\"; alter table metadata_v3 rename to \"Meta.Data\"",
        runs: "\"Runs V3\"",
        metadata: "\"Meta.Data\"",
        env: &[("DB_TABLE_NAME_RUNS", "\"Runs V3\""), ("DB_TABLE_NAME_METADATA", "public.\"Meta.Data\"")],
    },
    Names {
        rename: "create schema meta; create schema other; alter table runs_v3 set schema meta; alter table metadata_v3 set schema other",
        runs: "meta.runs_v3",
        metadata: "other.metadata_v3",
        env: &[("DB_TABLE_NAME_RUNS", "Meta.runs_v3"), ("DB_TABLE_NAME_METADATA", "other.METADATA_V3")],
    },
    Names {
        rename: "create schema \"Meta Flow\"; alter table runs_v3 set schema \"Meta Flow\"; alter table metadata_v3 set schema \"Meta Flow\";
                 create table runs_v3 (); create table metadata_v3 ()",
        runs: "\"Meta Flow\".runs_v3",
        metadata: "\"Meta Flow\".metadata_v3",
        env: &[("DB_SCHEMA_NAME", "Meta Flow")],
    },
    Names {
        rename: r#"create schema "a.b\n
            '{{runs}}' $1";
            alter table runs_v3 set schema "a.b\n
            '{{runs}}' $1"; alter table "a.b\n
            '{{runs}}' $1".runs_v3 rename to "r""u'n\s %s é流 {{metadata}} $1 --";
            alter table metadata_v3 rename to "{{ % -- /* ; ""x"" \ ' }}""#,
        runs: "\"a.b\\n\n            '{{runs}}' $1\".\"r\"\"u'n\\s %s é流 {{metadata}} $1 --\"",
        metadata: r#""{{ % -- /* ; ""x"" \ ' }}""#,
        env: &[
            ("DB_TABLE_NAME_RUNS", "\"a.b\\n\n            '{{runs}}' $1\".\"r\"\"u'n\\s %s é流 {{metadata}} $1 --\""),
            ("DB_TABLE_NAME_METADATA", r#""{{ % -- /* ; ""x"" \ ' }}""#),
        ],
    },
];

#[tokio::test]
async fn tables_of_any_name_are_found_indexed_and_left_as_they_were() {
    for names in NAMES {
        let database = Database::fresh().await;
        let client = database.client().await;
        execute(&client, names.rename).await;
        let role = role(&database, "indexer").await;
        let before = dump(&database).await;
        let up = ["up", "--grant-to", role.as_str()];
        succeeded(&migrate_as(database.url(), &database, &up, names.env).await);
        let told = succeeded(&migrate_as(database.url(), &database, &["status"], names.env).await);
        assert!(
            told.contains("0014_running_index          applied"),
            "{told}"
        );
        works(&client, names.runs, names.metadata).await;

        let mut launch = Launch::on(&database)
            .args(&["run", "--metrics-listen", "127.0.0.1:0"])
            .env("DATABASE_URL", &url_of(&database, &role));
        for (name, value) in names.env {
            launch = launch.env(name, value);
        }
        let daemon = launch.start().await;
        let late = format!(
            "insert into {} (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
             values ('Works', 1, 'end', 1, 'attempt_ok', 'False', 'x', 2)",
            names.metadata
        );
        execute(&client, &late).await;
        let status = format!(
            "select (run_status = 'failed')::int::bigint from {}",
            names.runs
        );
        eventually_eq(SOON, "the daemon has written it", 1, async || {
            number(&client, &status).await
        })
        .await;
        assert!(daemon.terminate().await.success());

        execute(
            &client,
            &format!(
                "delete from {}; delete from {}; delete from flows_v3",
                names.runs, names.metadata
            ),
        )
        .await;
        succeeded(&migrate_as(database.url(), &database, &["down"], names.env).await);
        same(&before, &dump(&database).await);
    }
}

// --- refusals

/// A direction, the environment, the exit code, and words of the reason.
type Refusal = (
    &'static [&'static str],
    &'static [(&'static str, &'static str)],
    i32,
    &'static str,
);

const REFUSALS: [Refusal; 11] = [
    (
        &["up"],
        &[("DB_TABLE_NAME_RUNS", "nosuch")],
        1,
        "there is no table nosuch",
    ),
    (
        &["down"],
        &[("DB_TABLE_NAME_METADATA", "public.nosuch")],
        1,
        "DB_TABLE_NAME_METADATA",
    ),
    (
        &["up"],
        &[("DB_TABLE_NAME_RUNS", "no such")],
        1,
        "is no table's name",
    ),
    (
        &["up"],
        &[("DB_TABLE_NAME_RUNS", "a.b.c.d")],
        1,
        "correct DB_TABLE_NAME_RUNS",
    ),
    (
        &["up"],
        &[("DB_TABLE_NAME_RUNS", "otherdb.public.runs_v3")],
        1,
        "DB_TABLE_NAME_RUNS",
    ),
    (
        &["up"],
        &[("DB_SCHEMA_NAME", "nosuch")],
        1,
        "DB_SCHEMA_NAME",
    ),
    (
        &["status"],
        &[("DB_SCHEMA_NAME", "nosuch")],
        1,
        "DB_SCHEMA_NAME",
    ),
    (
        &["up"],
        &[("DB_TABLE_NAME_RUNS", "a_view")],
        1,
        "is no ordinary table",
    ),
    (
        &["up"],
        &[("DB_TABLE_NAME_RUNS", "\"do$$llar\"")],
        1,
        "contains $$",
    ),
    (
        &["up"],
        &[("RUN_INACTIVE_CUTOFF_TIME", "0")],
        64,
        "--cutoff",
    ),
    (
        &["down", "--grant-to", "x"],
        &[],
        64,
        "--grant-to goes with `migrate up`",
    ),
];

#[tokio::test]
async fn what_cannot_be_is_refused_in_words_and_changes_nothing() {
    let database = Database::fresh().await;
    let client = database.client().await;
    execute(
        &client,
        "create view a_view as select * from runs_v3; create table \"do$$llar\" ()",
    )
    .await;
    let before = dump(&database).await;
    for (args, env, code, words) in REFUSALS {
        let output = migrate_as(database.url(), &database, args, env).await;
        let told = refused(&output, code);
        assert!(told.contains(words), "{args:?} {env:?}: {told}");
    }
    same(&before, &dump(&database).await);

    let told = refused(
        &migrate(&database, &["up", "--grant-to", "no one"]).await,
        1,
    );
    assert!(
        told.contains("there is no role no one: create it first"),
        "{told}"
    );
    is_whole(&database).await;

    let elsewhere = [("DB_TABLE_NAME_RUNS", "flows_v3")];
    for args in [["up"], ["down"]] {
        let told = refused(
            &migrate_as(database.url(), &database, &args, &elsewhere).await,
            1,
        );
        assert!(
            told.contains("is installed for \"public\".\"runs_v3\""),
            "{told}"
        );
    }
    let future = "insert into status_indexer.schema_history (version, name) values (999, 'future')";
    execute(&client, future).await;
    let told = refused(&migrate(&database, &["up"]).await, 1);
    assert!(told.contains("use the newer binary"), "{told}");
}

#[tokio::test]
async fn a_column_of_somebody_else_is_neither_taken_nor_dropped() {
    let database = Database::fresh().await;
    let client = database.client().await;
    execute(
        &client,
        "alter table runs_v3 add column run_status text default 'mine'",
    )
    .await;
    let before = dump(&database).await;
    let told = refused(&migrate(&database, &["up"]).await, 1);
    assert!(told.contains("has a column run_status already"), "{told}");
    same(&before, &dump(&database).await);
    succeeded(&migrate(&database, &["down"]).await);
    same(&before, &dump(&database).await);
}

#[tokio::test]
async fn a_role_that_does_not_own_the_tables_is_told_who_does() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let app = owner(&database).await;
    let stranger = role(&database, "stranger").await;
    execute(
        &client,
        &format!("grant all on all tables in schema public to {stranger}"),
    )
    .await;
    execute(
        &client,
        &format!("grant create on database {} to {stranger}", database.name()),
    )
    .await;
    let before = dump(&database).await;
    for direction in ["up", "down"] {
        let output = migrate_as(&url_of(&database, &stranger), &database, &[direction], &[]).await;
        let told = refused(&output, 1);
        assert!(
            told.contains(&format!(
                "the role {stranger} does not own \"public\".\"runs_v3\""
            )),
            "{told}"
        );
        assert!(told.contains(&format!("migrate as {app}")), "{told}");
    }
    same(&before, &dump(&database).await);
    // A member of the owner may.
    execute(&client, &format!("grant {app} to {stranger}")).await;
    succeeded(&migrate_as(&url_of(&database, &stranger), &database, &["up"], &[]).await);
    is_whole(&database).await;
}

#[tokio::test]
async fn an_owner_who_may_not_make_a_schema_uses_one_that_was_made_for_it() {
    let database = Database::fresh().await;
    let client = database.client().await;
    let app = owner(&database).await;
    let indexer = role(&database, "indexer").await;
    let url = url_of(&database, &app);
    let told = refused(&migrate_as(&url, &database, &["up"], &[]).await, 1);
    assert!(
        told.contains("needs CREATE on the database, or an empty schema"),
        "{told}"
    );

    execute(
        &client,
        &format!(
            "create schema status_indexer; grant usage, create on schema status_indexer to {app}"
        ),
    )
    .await;
    let before = dump(&database).await;
    succeeded(&migrate_as(&url, &database, &["up"], &[]).await);
    is_whole(&database).await;
    let up = ["up", "--grant-to", indexer.as_str()];
    let told = refused(&migrate_as(&url, &database, &up, &[]).await, 1);
    assert!(told.contains("USAGE on \"status_indexer\""), "{told}");
    execute(
        &client,
        &format!("grant usage on schema status_indexer to {indexer}"),
    )
    .await;
    succeeded(&migrate_as(&url, &database, &up, &[]).await);
    execute(
        &client,
        &format!("revoke usage on schema status_indexer from {indexer}"),
    )
    .await;
    execute(&client, "truncate flows_v3, metadata_v3 cascade").await;
    succeeded(&migrate_as(&url, &database, &["down"], &[]).await);
    same(&before, &dump(&database).await);
}

// --- the daemon's role

#[tokio::test]
async fn a_role_that_was_granted_can_run_and_can_do_no_more() {
    let database = Database::fresh().await;
    let app = owner(&database).await;
    let indexer = role(&database, "indexer").await;
    let admin = database.client().await;
    // The default since PostgreSQL 15.
    execute(&admin, "revoke create on schema public from public").await;
    execute(
        &admin,
        &format!("grant create on database {} to {app}", database.name()),
    )
    .await;
    let up = ["up", "--grant-to", indexer.as_str()];
    succeeded(&migrate_as(&url_of(&database, &app), &database, &up, &[]).await);
    let daemon = Launch::on(&database)
        .args(&["run", "--metrics-listen", "127.0.0.1:0"])
        .env("DATABASE_URL", &url_of(&database, &indexer))
        .env("RUN_INACTIVE_CUTOFF_TIME", "30")
        .start()
        .await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let now = writer.now_secs().await;
    let run = writer.insert_run("F", Some(now)).await;
    let ahead = writer.insert_run("F", Some(now + 4_000)).await;
    writer.attempt_ok("F", run, "True", now * 1000).await;
    eventually_eq(SOON, "completed", "completed".to_owned(), async || {
        writer.status("F", run).await
    })
    .await;
    eventually_eq(SOON, "failed", "failed".to_owned(), async || {
        writer.status("F", ahead).await
    })
    .await;
    let told = succeeded(
        &Launch::on(&database)
            .args(&["explain", "F", &run.to_string()])
            .env("DATABASE_URL", &url_of(&database, &indexer))
            .env("RUN_INACTIVE_CUTOFF_TIME", "30")
            .output()
            .await,
    );
    assert!(told.contains("completed (agrees)"), "{told}");

    let mut config = database.config();
    config.user(&indexer);
    let client = connect(&config).await;
    for forbidden in [
        "update runs_v3 set user_name = 'x'",
        "update runs_v3 set last_heartbeat_ts = 0",
        "delete from runs_v3",
        "insert into runs_v3 (flow_id, ts_epoch) values ('F', 0)",
        "update metadata_v3 set value = 'x'",
        "delete from metadata_v3",
        "truncate metadata_v3",
        "select * from flows_v3",
        "update status_indexer.run_status set flow_id = 'x'",
        "delete from status_indexer.run_status",
        "insert into status_indexer.run_status (flow_id, run_number) values ('F', 9)",
        "delete from status_indexer.schema_history",
        "insert into status_indexer.grants values ('x', 'y', 'z')",
        "delete from status_indexer.state",
        "create table status_indexer.mine ()",
        "create view public.mine as select 1",
        "drop table status_indexer.queue",
        "alter table runs_v3 disable trigger all",
        "alter function status_indexer.apply(text[], bigint[], timestamptz[]) reset all",
    ] {
        let error = client.batch_execute(forbidden).await.expect_err(forbidden);
        assert_eq!(
            error.code(),
            Some(&SqlState::INSUFFICIENT_PRIVILEGE),
            "{forbidden}"
        );
    }
    assert!(daemon.terminate().await.success());
}

#[tokio::test]
async fn a_role_without_the_grants_is_told_what_to_do() {
    let database = Database::fresh().await;
    let stranger = role(&database, "stranger").await;
    succeeded(&migrate(&database, &["up"]).await);
    let daemon = Launch::on(&database)
        .args(&["run", "--metrics-listen", "127.0.0.1:0"])
        .env("DATABASE_URL", &url_of(&database, &stranger))
        .spawn();
    assert_eq!(daemon.exit().await.code(), Some(1));
    let said = format!("{:?}", daemon.log());
    assert!(said.contains("migrate up --grant-to ROLE"), "{said}");
}

// --- jsonb

#[tokio::test]
async fn a_jsonb_column_is_indexed_from_end_to_end() {
    let database = Database::fresh().await;
    let writer = database.writer().await;
    let client = writer.client();
    execute(
        client,
        "alter table metadata_v3 alter column value type jsonb using to_jsonb(value)",
    )
    .await;
    let daemon = Launch::on(&database).start().await;
    writer.insert_flow("F").await;
    let now = writer.now_secs().await;
    let run = writer.insert_run("F", Some(now)).await;
    for (ts, value, status) in [
        (1, "\"False\"", "failed"),
        (2, "true", "completed"),
        (3, "[\"False\"]", "failed"),
        (4, "{}", "running"),
        (5, "1", "completed"),
        (6, "null", "running"),
        (7, "\"True\"", "completed"),
    ] {
        let insert = format!(
            "insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
             values ('F', {run}, 'end', 1, 'attempt_ok', '{value}', 'x', {ts})"
        );
        execute(client, &insert).await;
        eventually_eq(SOON, value, status.to_owned(), async || {
            writer.status("F", run).await
        })
        .await;
    }
    // Back to text under the running indexer.
    execute(client, "delete from metadata_v3 where value = 'null'").await;
    execute(
        client,
        "alter table metadata_v3 alter column value type text using value #>> '{}'",
    )
    .await;
    writer.attempt_ok("F", run, "False", 8).await;
    eventually_eq(SOON, "text again", "failed".to_owned(), async || {
        writer.status("F", run).await
    })
    .await;
    assert!(daemon.terminate().await.success());
    succeeded(&migrate(&database, &["down"]).await);
}
