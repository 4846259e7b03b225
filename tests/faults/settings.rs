//! The most hostile defaults that a role or a database can have: every session sets what it needs itself.

use std::time::Duration;

use super::{leads, run, text_of};
use testkit::daemon::Launch;
use testkit::database::{Database, connect, shared};
use testkit::drift::{eventually_no_drift, eventually_status};
use testkit::wait::eventually;
use testkit::writer::Writer;

const TIMEOUT: Duration = Duration::from_secs(60);

/// Settings, and the first version of the server that knows them.
const HOSTILE: &[(u32, &str, &str)] = &[
    (0, "statement_timeout", "'10ms'"),
    (0, "lock_timeout", "'1ms'"),
    (0, "idle_in_transaction_session_timeout", "'100ms'"),
    (14, "idle_session_timeout", "'1s'"),
    (17, "transaction_timeout", "'10ms'"),
    (0, "default_transaction_read_only", "on"),
    (0, "default_transaction_isolation", "'serializable'"),
    (0, "default_transaction_deferrable", "on"),
    (0, "session_replication_role", "replica"),
    (0, "search_path", "nosuch, pg_temp"),
    (0, "row_security", "on"),
    (0, "synchronous_commit", "remote_apply"),
    (0, "jit", "on"),
    (0, "work_mem", "'64kB'"),
    (0, "plan_cache_mode", "force_custom_plan"),
    (0, "enable_indexscan", "off"),
    (0, "enable_indexonlyscan", "off"),
    (0, "enable_bitmapscan", "off"),
    (0, "enable_nestloop", "off"),
    (0, "enable_hashjoin", "off"),
    (0, "enable_mergejoin", "off"),
    (0, "enable_sort", "off"),
    (0, "from_collapse_limit", "1"),
    (0, "join_collapse_limit", "1"),
];

/// Those that change what statements mean or print, which the sessions of writers may have too.
const FORMS: &[(u32, &str, &str)] = &[
    (0, "datestyle", "'SQL, DMY'"),
    (0, "intervalstyle", "sql_standard"),
    (0, "timezone", "'Pacific/Kiritimati'"),
    (0, "bytea_output", "escape"),
    (0, "extra_float_digits", "-15"),
    (0, "client_encoding", "latin1"),
    (0, "quote_all_identifiers", "on"),
    (0, "standard_conforming_strings", "off"),
    (0, "transform_null_equals", "on"),
    (0, "array_nulls", "off"),
    (0, "client_min_messages", "debug5"),
    (0, "xmloption", "document"),
    (0, "plpgsql.extra_errors", "'all'"),
];

/// Statements that give a role or a database these defaults.
async fn defaults(of: &str, settings: &[(u32, &str, &str)]) -> String {
    let server = shared().await.major();
    let known = settings.iter().filter(|(since, _, _)| server >= *since);
    let statements = known.map(|(_, name, value)| format!("alter {of} set {name} = {value};\n"));
    // A setting of PL/pgSQL is known once the language is loaded.
    format!("load 'plpgsql';\n{}", statements.collect::<String>())
}

/// Runs a command until it succeeds. On a busy machine the role's own limit may end the first statement
/// of a connection, before the session can set another; then the error names the limit.
async fn succeeds(launch: &Launch, words: &[&str]) {
    eventually(TIMEOUT, &format!("{words:?} succeeds"), async || {
        let output = launch.clone().args(words).output().await;
        let text = text_of(&output);
        assert!(
            output.status.success() || text.contains("timeout"),
            "{words:?}: {text}"
        );
        output.status.success()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_default_of_the_role_or_the_database_matters() {
    for of_role in [true, false] {
        let database = Database::fresh().await;
        let admin = database.client().await;
        let name = database.name().to_owned();
        let role = format!("hostile_{name}");
        run(
            &admin,
            &format!(
                "create role {role} login;
                 grant create on database {name} to {role};
                 grant usage, create on schema public to {role};
                 alter table runs_v3 owner to {role};
                 alter table metadata_v3 owner to {role};"
            ),
        )
        .await;
        let of = if of_role {
            format!("role {role}")
        } else {
            format!("database {name}")
        };
        let statements = defaults(&of, &[HOSTILE, FORMS].concat()).await;
        // The database's own settings would apply to the test.
        let writer = database.writer().await;
        run(&admin, &statements).await;

        let url = database.url().replace("postgres@", &format!("{role}@"));
        let launch = Launch::on(&database)
            .env("DATABASE_URL", &url)
            .env("DB_SCHEMA_NAME", "public")
            .env("RUN_INACTIVE_CUTOFF_TIME", "5");
        succeeds(&launch, &["migrate", "up"]).await;
        // Nothing is to be done: every object is recognized.
        succeeds(&launch, &["migrate", "up"]).await;
        succeeds(&launch, &["migrate", "status"]).await;
        let daemon = launch
            .clone()
            .args(&["run", "--metrics-listen", "127.0.0.1:0"])
            .start()
            .await;
        eventually(TIMEOUT, "it leads", async || leads(&daemon).await).await;
        writer.insert_flow("F").await;
        let now = writer.now_ms().await;
        let done = writer.insert_run("F", Some(now / 1000)).await;
        let lost = writer.insert_run("F", Some(now / 1000)).await;
        writer.attempt_ok("F", done, "True", now).await;
        eventually_status(&writer, "F", done, "completed").await;
        eventually_status(&writer, "F", lost, "failed").await;
        succeeds(&launch, &["backfill"]).await;
        eventually_no_drift(writer.client()).await;
        succeeds(&launch, &["verify"]).await;
        for number in [done, lost] {
            let number = number.to_string();
            succeeds(&launch, &["explain", "F", &number]).await;
            succeeds(&launch, &["explain", "F", &number, "--json"]).await;
        }
        let page = format!("http://{}/flows/F/runs?status=failed", daemon.api().await);
        let client = reqwest::Client::builder().no_proxy().build();
        let answer = client.expect("a plain client").get(page).send().await;
        assert_eq!(answer.expect("it answers").status(), 200);
        assert!(daemon.terminate().await.success());
        succeeds(&launch, &["migrate", "down"]).await;
        run(
            &admin,
            &format!("drop owned by {role} cascade; drop role {role}"),
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_default_of_a_writers_session_loses_its_event() {
    let database = Database::fresh().await;
    let admin = database.client().await;
    let role = format!("writer_{}", database.name());
    let daemon = Launch::on(&database)
        .env("RUN_INACTIVE_CUTOFF_TIME", "3600")
        .start()
        .await;
    let settings = [
        FORMS,
        &[
            (0, "default_transaction_isolation", "'serializable'"),
            (0, "search_path", "public"),
            (0, "enable_indexscan", "off"),
            (0, "enable_seqscan", "off"),
            (0, "jit_above_cost", "0"),
        ],
    ]
    .concat();
    let statements = defaults(&format!("role {role}"), &settings).await;
    run(
        &admin,
        &format!(
            "create role {role} login;
             grant all on all tables in schema public to {role};
             grant all on all sequences in schema public to {role};
             {statements}"
        ),
    )
    .await;
    let mut config = database.config();
    config.user(&role);
    let writer = Writer::new(connect(&config).await);
    writer.insert_flow("F").await;
    let now = writer.now_ms().await;
    let run_number = writer.insert_run("F", Some(now / 1000)).await;
    for (step, value, status) in [
        (1, "False", "failed"),
        (2, "True", "completed"),
        (3, "False", "failed"),
    ] {
        writer.attempt_ok("F", run_number, value, now + step).await;
        eventually_status(&writer, "F", run_number, status).await;
    }
    writer.attempt("F", run_number, now + 4).await;
    eventually_status(&writer, "F", run_number, "running").await;
    let without = writer.insert_run("F", None).await;
    eventually_status(&writer, "F", without, "failed").await;
    let beats = writer.now_secs().await;
    assert!(writer.heartbeat("F", without, beats).await);
    eventually_status(&writer, "F", without, "running").await;
    eventually_no_drift(&admin).await;
    // The events themselves arrived: no reconciliation pass has repaired anything.
    let (_, metrics) = daemon.get("/metrics").await.expect("it answers");
    let drift = metrics
        .lines()
        .filter(|line| line.starts_with("status_indexer_drift_total"));
    let repaired: Vec<&str> = drift.filter(|line| !line.ends_with(" 0")).collect();
    assert!(repaired.is_empty(), "{repaired:?}");
    drop(writer);
    run(&admin, &format!("drop owned by {role}; drop role {role}")).await;
}
