//! Faults of one database: its objects, its roles, its settings, its transactions.

use testkit::daemon::Launch;
use testkit::database::{Database, shared};
use testkit::requirement::left_out;

use super::{Doctor, execute, installation, migrate, url_of};

/// Faults that somebody can make by SQL and undo again: what, the check, its state, words of its line,
/// and how to undo it.
const FAULTS: &[(&str, &str, &str, &str, &str)] = &[
    (
        "alter table runs_v3 add column mine integer",
        "view",
        "warning",
        "other columns than the runs table",
        "alter table runs_v3 drop column mine",
    ),
    (
        "alter database :db set temp_file_limit = '1MB'",
        "settings",
        "warning",
        "temp_file_limit is 1024 kB",
        "alter database :db reset temp_file_limit",
    ),
    (
        "alter database :db set statement_timeout = '200ms'",
        "settings",
        "warning",
        "statement_timeout is 200 ms",
        "alter database :db reset statement_timeout",
    ),
    (
        "alter database :db set lock_timeout = 1",
        "settings",
        "warning",
        "lock_timeout is 1 ms",
        "alter database :db reset lock_timeout",
    ),
    (
        "alter database :db set default_transaction_read_only = on",
        "settings",
        "warning",
        "read-only by default",
        "alter database :db reset default_transaction_read_only",
    ),
    (
        "create role reader_:db; alter role reader_:db in database :db set default_transaction_read_only = on",
        "settings_of_others",
        "warning",
        "read-only by default for role reader_",
        "alter role reader_:db in database :db reset all; drop role reader_:db",
    ),
    (
        "create role loader_:db; alter role loader_:db in database :db set session_replication_role = replica",
        "settings_of_others",
        "problem",
        "session_replication_role is replica for role loader_",
        "alter role loader_:db in database :db reset all; drop role loader_:db",
    ),
    (
        "alter table status_indexer.queue set (autovacuum_enabled = off)",
        "queue_bloat",
        "warning",
        "autovacuum is off",
        "alter table status_indexer.queue reset (autovacuum_enabled)",
    ),
    (
        "create role backup_:db login; grant usage on schema public to backup_:db;
         grant select on all tables in schema public to backup_:db;
         grant select on all sequences in schema public to backup_:db",
        "dumps",
        "warning",
        "--grant-dump-to ROLE",
        "drop owned by backup_:db; drop role backup_:db",
    ),
    (
        "create function notify_ui_f() returns trigger language plpgsql as 'begin return new; end';
         create trigger notify_ui_runs after update on runs_v3 for each row execute function notify_ui_f()",
        "upstream_triggers",
        "warning",
        "DB_TRIGGER_CREATE=1",
        "drop trigger notify_ui_runs on runs_v3; drop function notify_ui_f()",
    ),
    (
        "create role other_:db; alter table metadata_v3 owner to other_:db",
        "owner",
        "problem",
        "belongs to other_",
        "alter table metadata_v3 owner to postgres; drop role other_:db",
    ),
    (
        "create role other_:db; alter table runs_v3 owner to other_:db; alter table metadata_v3 owner to other_:db",
        "owner",
        "problem",
        "the indexer's objects belong to postgres",
        "alter table runs_v3 owner to postgres; alter table metadata_v3 owner to postgres; drop role other_:db",
    ),
    (
        "drop index status_indexer_failed",
        "indexes",
        "problem",
        "status_indexer_failed is missing",
        "create index status_indexer_failed on runs_v3 (flow_id, ts_epoch desc, run_number desc)
         where run_status = 'failed'",
    ),
    (
        "update pg_index set indisvalid = false where indexrelid = 'status_indexer_running'::regclass",
        "indexes",
        "problem",
        "status_indexer_running is invalid",
        "update pg_index set indisvalid = true where indexrelid = 'status_indexer_running'::regclass",
    ),
    (
        "update pg_index set indisvalid = false where indrelid = 'metadata_v3'::regclass",
        "tables",
        "problem",
        "has no index on (flow_id, run_number, step_name)",
        "update pg_index set indisvalid = true where indrelid = 'metadata_v3'::regclass",
    ),
    (
        "update status_indexer.state set definition_version = 99",
        "definition",
        "problem",
        "version 99",
        "update status_indexer.state set definition_version = 1",
    ),
    (
        "insert into status_indexer.schema_history (version, name) values (999, 'x')",
        "steps",
        "problem",
        "use the newer binary",
        "delete from status_indexer.schema_history where version = 999",
    ),
    (
        "update status_indexer.schema_history set version = 998 where version = 16",
        "steps",
        "problem",
        "0016_reads",
        "update status_indexer.schema_history set version = 16 where version = 998",
    ),
    (
        "update status_indexer.state set runs_table = '\"public\".\"elsewhere\"'",
        "steps",
        "problem",
        "installed for other tables",
        "update status_indexer.state set runs_table = '\"public\".\"runs_v3\"'",
    ),
    (
        "alter function status_indexer.fresh_secs(bigint) rename to stale_secs",
        "functions",
        "problem",
        "missing or replaced: fresh_secs",
        "alter function status_indexer.stale_secs(bigint) rename to fresh_secs",
    ),
    (
        "alter table runs_v3 disable trigger status_indexer_insert",
        "triggers",
        "problem",
        "is disabled",
        "alter table runs_v3 enable trigger status_indexer_insert",
    ),
    (
        "drop trigger status_indexer_delete on metadata_v3",
        "triggers",
        "problem",
        "is missing",
        "",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_is_found_with_what_to_do_and_is_gone_when_it_is_undone() {
    let database = Database::fresh().await;
    migrate(&database, &[]).await;
    let client = database.client().await;
    let doctor = Doctor::on(&database);
    for (fault, check, state, words, undo) in FAULTS {
        let of_database = |sql: &str| sql.replace(":db", database.name());
        let before = doctor.report().await;
        assert!(
            !before.has(check, state, words),
            "{check}: {:#?}",
            before.of(check)
        );
        execute(&client, &of_database(fault)).await;
        let report = doctor.report().await;
        println!("{check}: {:#?}", report.of(check));
        report.is(check, state, words);
        execute(&client, &of_database(undo)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warning_is_not_a_failure_and_a_dead_daemon_is() {
    let (database, daemon) = installation().await;
    let doctor = Doctor::on(&database).arg("--cutoff", "100");
    let report = doctor.report().await;
    report.is(
        "cutoff",
        "warning",
        "360 s in the database, 100 s configured here",
    );
    assert_eq!(report.json["state"], "warning");
    report.is_well();
    report.is("leader", "ok", "leads");

    daemon.freeze().await;
    doctor.eventually("leader", "problem", "heartbeat is").await;
    daemon.thaw();
    daemon.kill9().await;
    doctor
        .eventually("leader", "problem", "no daemon leads")
        .await;
}

#[tokio::test]
async fn a_fresh_installation_has_a_column_that_is_not_valid_and_no_leader() {
    let database = Database::fresh().await;
    let doctor = Doctor::on(&database);
    let report = doctor.report().await;
    report.is("steps", "problem", "not installed");
    report.is("column", "unknown", "the indexer is not installed");
    migrate(&database, &[]).await;
    let report = doctor.report().await;
    report.is(
        "column",
        "problem",
        "the backfill has compared 0 of about 0 runs",
    );
    report.is("leader", "problem", "no daemon has worked yet");
    report.is("steps", "ok", "all 16 steps");
}

#[tokio::test]
async fn a_database_without_the_tables_says_which_name_to_correct() {
    let database = Database::empty().await;
    let report = Doctor::on(&database).report().await;
    report.is("tables", "problem", "DB_TABLE_NAME_RUNS");
    report.is("publications", "unknown", "the tables were not found");
    report.is("server_version", "ok", "PostgreSQL");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_with_fewer_privileges_sees_what_it_can() {
    let (database, _daemon) = installation().await;
    let client = database.client().await;
    let role = format!("stranger_{}", database.name());
    execute(&client, &format!("create role {role} login")).await;
    let doctor = Doctor::on(&database).env("DATABASE_URL", &url_of(&database, &role));
    let report = doctor.report().await;
    report.is(
        "privileges",
        "problem",
        "SELECT, INSERT, UPDATE, DELETE on status_indexer.queue",
    );
    report.is("queue", "unknown", "cannot see");
    report.is("column", "unknown", "cannot see");
    report.is("transactions", "unknown", "pg_read_all_stats");
    report.is("server_version", "ok", "");

    // As `migrate up --grant-to` makes it, it has no problem left.
    migrate(&database, &["--grant-to", &role]).await;
    let report = doctor.report().await;
    report.is("privileges", "ok", &role);
    report.is("column", "ok", "valid since");
    report.is_well();

    // A privilege that is lost later is named.
    let revoke = format!("revoke update (run_status) on runs_v3 from {role}");
    execute(&client, &revoke).await;
    doctor.report().await.is(
        "privileges",
        "problem",
        "lacks UPDATE (run_status) on public.runs_v3",
    );

    execute(&client, "alter table metadata_v3 enable row level security").await;
    let report = doctor.report().await;
    report.is("row_security", "problem", "applies to role");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collation_that_changed_is_a_problem() {
    if shared().await.major() < 15 {
        left_out("needs PostgreSQL 15 or later: the version of a database's collation");
        return;
    }
    let database = Database::icu().await;
    migrate(&database, &[]).await;
    let client = database.client().await;
    Doctor::on(&database)
        .report()
        .await
        .is("collation", "ok", "");
    execute(
        &client,
        "update pg_database set datcollversion = 'old' where datname = current_database()",
    )
    .await;
    let report = Doctor::on(&database).report().await;
    report.is("collation", "problem", "refresh collation version");
}

#[tokio::test]
async fn a_database_of_another_encoding_is_a_warning() {
    let database = Database::sql_ascii().await;
    let report = Doctor::on(&database).report().await;
    report.is("encoding", "warning", "SQL_ASCII");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_and_the_dead_rows_that_it_keeps_are_warnings() {
    let (database, _daemon) = installation().await;
    let (client, sleeper) = (database.client().await, database.client().await);
    let doctor = Doctor::on(&database).arg("--max-transaction-age", "0");
    doctor
        .report()
        .await
        .is("transactions", "ok", "longer than 0 s");
    execute(&sleeper, "begin isolation level repeatable read; select 1").await;
    // In one transaction, so that no daemon sees them.
    let dead = "\
begin;
insert into status_indexer.queue (flow_id, run_number) select 'F', n from generate_series(1, 120000) n;
delete from status_indexer.queue;
commit;";
    execute(&client, dead).await;
    let report = doctor
        .eventually("queue_bloat", "warning", "120000 dead rows")
        .await;
    report.is("transactions", "warning", "idle in transaction, open for");
    report.is_well();
    // With the usual limit it is not yet too long.
    let report = Doctor::on(&database).report().await;
    report.is("transactions", "ok", "longer than 300 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_waits_for_too_long_is_a_problem() {
    let (database, _daemon) = installation().await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let now = writer.now_secs().await;
    let run = writer.insert_run("F", Some(now)).await;
    let holder = database.client().await;
    execute(&holder, "begin; select from runs_v3 for update").await;
    writer.attempt_ok("F", run, "True", now * 1000).await;
    let doctor = Doctor::on(&database).arg("--max-event-age", "1");
    doctor.eventually("queue", "problem", "1 events wait").await;
    let usual = Doctor::on(&database).report().await;
    usual.is("queue", "ok", "1 events wait");
    execute(&holder, "commit").await;
    doctor.eventually("queue", "ok", "0 events wait").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_in_the_future_are_a_warning() {
    let (database, _daemon) = installation().await;
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let now = writer.now_secs().await;
    writer.insert_run("F", Some(now + 200)).await;
    writer.insert_run("F", Some(now + 100_000)).await;
    let doctor = Doctor::on(&database);
    let report = doctor
        .eventually("heartbeats", "warning", "1 running and 1 failed")
        .await;
    report.is_well();
}

#[tokio::test]
async fn settings_of_newer_servers_that_end_sessions_are_warnings() {
    let database = Database::fresh().await;
    let client = database.client().await;
    for (since, name) in [(14, "idle_session_timeout"), (17, "transaction_timeout")] {
        if shared().await.major() < since {
            left_out(&format!("needs PostgreSQL {since} or later: {name}"));
            continue;
        }
        let set = format!("alter database {} set {name} = '5s'", database.name());
        execute(&client, &set).await;
        let report = Doctor::on(&database).report().await;
        report.is("settings", "warning", &format!("{name} is 5000 ms"));
    }
}

#[tokio::test]
async fn a_role_whose_sessions_fire_no_triggers_is_a_problem() {
    let database = Database::fresh().await;
    let set = format!(
        "alter database {} set session_replication_role = replica",
        database.name()
    );
    execute(&database.client().await, &set).await;
    let report = Doctor::on(&database).report().await;
    report.is("settings", "problem", "for this role");
    report.is(
        "settings_of_others",
        "problem",
        "for all roles in this database",
    );
}

#[tokio::test]
async fn clocks_that_differ_are_found() {
    if !cfg!(target_os = "linux") {
        left_out("libfaketime is preloaded on Linux only");
        return;
    }
    let library = crate::faults::clock::library();
    let database = Database::fresh().await;
    let output = Launch::on(&database)
        .args(&["migrate", "up"])
        .output()
        .await;
    assert!(output.status.success());
    for (offset, state, words) in [
        ("+60", "warning", "s behind this machine's"),
        ("-60", "warning", "s ahead of this machine's"),
        ("+1000", "problem", "by more than the cutoff"),
    ] {
        let doctor = Doctor::on(&database)
            .env("LD_PRELOAD", &library.display().to_string())
            .env("FAKETIME", offset)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        doctor.report().await.is("clock", state, words);
    }
}
