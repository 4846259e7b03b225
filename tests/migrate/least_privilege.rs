//! The role that `migrate up --grant-to` prepares has the documented privileges, and no others.
//!
//! The list in docs/operations.md is compared with the server's catalog, over every object of the
//! database, so that a privilege that a migration adds has to be documented. Then the role tries
//! everything that the list does not contain.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use testkit::daemon::Launch;
use testkit::database::Database;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{client_of, execute, migrate_as, number, owner, role, succeeded, url_of};
use crate::docs::tables::check;

/// Every privilege of a role on every object of the database that is not PostgreSQL's own: the kind and
/// the name of the object, the privilege, and its columns if it has them on some columns only.
const HELD: &str = "\
with relation as (
  select c.oid, c.relkind, n.nspname, c.relname,
         case when n.nspname = 'public' then c.relname else n.nspname || '.' || c.relname end as name
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
   where n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
     and n.nspname not like 'pg\\_temp%' and n.nspname not like 'pg\\_toast\\_temp%'
), whole as (
  select r.oid, case r.relkind when 'v' then 'view' else 'table' end as kind, r.name, p.privilege,
         has_table_privilege($1, r.oid, p.privilege) as held
    from relation r
   cross join unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) p (privilege)
   where r.relkind in ('r', 'v', 'm', 'f', 'p')
)
select kind, name, privilege, '' as columns
  from whole
 where held
 union all
select w.kind, w.name, w.privilege, string_agg(quote_ident(a.attname), ', ' order by a.attname)
  from whole w
  join pg_attribute a on a.attrelid = w.oid and a.attnum > 0 and not a.attisdropped
 where not w.held
   and w.privilege in ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
   and has_column_privilege($1, w.oid, a.attnum, w.privilege)
 group by w.kind, w.name, w.privilege
 union all
select 'sequence', r.name, p.privilege, ''
  from relation r
 cross join unnest(array['USAGE', 'SELECT', 'UPDATE']) p (privilege)
 -- Not short-circuited by `and`: other relations are an error for this function.
 where case when r.relkind = 'S' then has_sequence_privilege($1, r.oid, p.privilege) end
 union all
select 'schema', n.nspname, p.privilege, ''
  from pg_namespace n
 cross join unnest(array['USAGE', 'CREATE']) p (privilege)
 where n.nspname not in ('pg_catalog', 'information_schema')
   and has_schema_privilege($1, n.oid, p.privilege)
 union all
select 'database', 'the database', p.privilege, ''
  from unnest(array['CONNECT', 'CREATE', 'TEMPORARY']) p (privilege)
 where has_database_privilege($1, current_database(), p.privilege)
 union all
select 'function', n.nspname || '.' || p.proname, 'EXECUTE with the rights of the owner', ''
  from pg_proc p
  join pg_namespace n on n.oid = p.pronamespace
 where n.nspname not in ('pg_catalog', 'information_schema')
   and p.prosecdef
   and has_function_privilege($1, p.oid, 'EXECUTE')
 union all
select 'others', 'all', 'tablespace ' || t.spcname, ''
  from pg_tablespace t
 where t.oid <> (select dattablespace from pg_database where datname = current_database())
   and has_tablespace_privilege($1, t.oid, 'CREATE')
 union all
select 'others', 'all', 'member of ' || r.rolname, ''
  from pg_auth_members m
  join pg_roles r on r.oid = m.roleid
 where m.member = (select oid from pg_roles where rolname = $1)
 union all
select 'others', 'all', 'owns object ' || d.objid || ' of ' || d.classid::regclass, ''
  from pg_shdepend d
 where d.refobjid = (select oid from pg_roles where rolname = $1) and d.deptype = 'o'
 union all
select 'others', 'all', 'attribute of the role', ''
  from pg_roles
 where rolname = $1
   and (rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls)";

/// The privileges of a role, as the table of the document.
async fn table_of(client: &Client, role: &str) -> String {
    let rows = client
        .query(HELD, &[&role])
        .await
        .expect("the catalog can be read");
    let mut objects: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for row in rows {
        let (privilege, columns): (String, String) = (row.get(2), row.get(3));
        let text = if columns.is_empty() {
            privilege
        } else {
            format!("{privilege} ({columns})")
        };
        objects
            .entry((row.get(0), row.get(1)))
            .or_default()
            .push(text);
    }
    let mut table = "| Object | Privileges of the daemon's role |\n|---|---|\n".to_owned();
    for ((kind, name), mut privileges) in objects {
        privileges.sort();
        let object = match kind.as_str() {
            "database" => "The database".to_owned(),
            _ => format!("{} `{name}`", capitalized(&kind)),
        };
        writeln!(table, "| {object} | {} |", privileges.join("; ")).expect("a string grows");
    }
    table
}

fn capitalized(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    first.to_uppercase() + rest
}

/// A database that the metadata service's role has migrated, with the daemon's role.
async fn migrated() -> (Database, String, String) {
    let database = Database::fresh().await;
    let app = owner(&database).await;
    let indexer = role(&database, "indexer").await;
    let admin = database.client().await;
    // The default since PostgreSQL 15.
    execute(&admin, "revoke create on schema public from public").await;
    let name = database.name();
    execute(&admin, &format!("grant create on database {name} to {app}")).await;
    let up = ["up", "--grant-to", indexer.as_str()];
    succeeded(&migrate_as(&url_of(&database, &app), &database, &up, &[]).await);
    (database, app, indexer)
}

#[tokio::test]
async fn the_daemons_role_has_the_documented_privileges() {
    let (database, _, indexer) = migrated().await;
    let admin = database.client().await;
    check("docs/operations.md", &table_of(&admin, &indexer).await);
    // The functions without rights of their own can be executed by every role that may use the schema.
    let denied = "\
select string_agg(p.proname, ' ' order by p.proname)
  from pg_proc p
 where p.pronamespace = 'status_indexer'::regnamespace
   and not has_function_privilege($1, p.oid, 'EXECUTE')";
    let row = admin
        .query_one(denied, &[&indexer])
        .await
        .expect("the catalog can be read");
    let denied: &str = row.get(0);
    assert_eq!(
        denied,
        "enqueue enqueue_changed enqueue_evidence enqueue_inserted enqueue_run"
    );

    // A second grant changes nothing, and takes back what an earlier version granted.
    let before = table_of(&admin, &indexer).await;
    execute(
        &admin,
        &format!("grant update on status_indexer.state to {indexer}"),
    )
    .await;
    let up = ["up", "--grant-to", indexer.as_str()];
    succeeded(&migrate_as(database.url(), &database, &up, &[]).await);
    assert_eq!(table_of(&admin, &indexer).await, before);
}

#[tokio::test]
async fn the_daemons_role_suffices_for_every_command_of_the_daemon() {
    let (database, _, indexer) = migrated().await;
    let url = url_of(&database, &indexer);
    let writer = database.writer().await;
    writer.insert_flow("F").await;
    let run = writer.insert_run("F", None).await.to_string();
    for args in [
        &["backfill"][..],
        &["verify"],
        &["explain", "F", &run],
        &["migrate", "status"],
    ] {
        let output = Launch::on(&database)
            .args(args)
            .env("DATABASE_URL", &url)
            .output()
            .await;
        succeeded(&output);
    }
    let client = client_of(&database, &indexer).await;
    execute(&client, "select status_indexer.invalidate()").await;
}

/// Tries a statement as the role, and undoes it. Whether the role may execute it; an error that does not
/// concern privileges comes after they were checked.
async fn may(client: &Client, statement: &str) -> bool {
    execute(client, "begin").await;
    let outcome = client.batch_execute(statement).await;
    execute(client, "rollback").await;
    match outcome {
        Ok(()) => true,
        Err(error) => error.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE),
    }
}

/// The attempts on a column, and the privilege that each needs.
const ON_COLUMN: [(&str, &str); 3] = [
    ("SELECT", "select COLUMN from TABLE where false"),
    ("UPDATE", "update TABLE set COLUMN = default where false"),
    ("INSERT", "insert into TABLE (COLUMN) values (default)"),
];

/// The attempts on a table that need a privilege on all of it.
const ON_TABLE: [(&str, &str); 3] = [
    ("DELETE", "delete from TABLE where false"),
    ("TRUNCATE", "truncate TABLE"),
    (
        "TRIGGER",
        "create trigger mine before update on TABLE for each row \
         execute function suppress_redundant_updates_trigger()",
    ),
];

/// What only the owner of a table may do.
const BY_OWNER: [&str; 12] = [
    "drop table TABLE",
    "alter table TABLE add column mine int",
    "alter table TABLE drop column COLUMN",
    "alter table TABLE disable trigger all",
    "alter table TABLE enable row level security",
    "alter table TABLE owner to current_user",
    "alter table TABLE set (autovacuum_enabled = off)",
    "create index on TABLE (COLUMN)",
    "create rule mine as on insert to TABLE do instead nothing",
    "create policy mine on TABLE",
    "comment on table TABLE is 'mine'",
    "cluster TABLE",
];

#[tokio::test]
async fn every_table_and_column_refuses_what_is_not_documented() {
    const COLUMNS: &str = "\
select a.attrelid::regclass::text, quote_ident(a.attname), c.relkind::text, a.attrelid, a.attnum
  from pg_attribute a
  join pg_class c on c.oid = a.attrelid
 where c.relnamespace in ('public'::regnamespace, 'status_indexer'::regnamespace)
   and c.relkind in ('r', 'p')
   and a.attnum > 0
   and not a.attisdropped";
    const HAS: &str = "select has_column_privilege($1, $2::oid, $3::int2, $4)";
    const HAS_TABLE: &str = "select has_table_privilege($1, $2::oid, $3)";
    let (database, _, indexer) = migrated().await;
    let admin = database.client().await;
    let client = client_of(&database, &indexer).await;
    let rows = admin
        .query(COLUMNS, &[])
        .await
        .expect("the catalog can be read");
    let (mut tables, mut attempts, mut allowed) = (Vec::new(), 0, Vec::new());
    for row in &rows {
        let (table, column): (String, String) = (row.get(0), row.get(1));
        let (oid, number): (u32, i16) = (row.get(3), row.get(4));
        let fill = |text: &str| text.replace("TABLE", &table).replace("COLUMN", &column);
        for (privilege, statement) in ON_COLUMN {
            let expected = admin
                .query_one(HAS, &[&indexer, &oid, &number, &privilege])
                .await;
            let expected: bool = expected.expect("a column").get(0);
            let statement = fill(statement);
            assert_eq!(may(&client, &statement).await, expected, "{statement}");
            attempts += 1;
            if expected && privilege != "SELECT" {
                allowed.push(statement);
            }
        }
        if tables.contains(&table) {
            continue;
        }
        for (privilege, statement) in ON_TABLE {
            let expected = admin
                .query_one(HAS_TABLE, &[&indexer, &oid, &privilege])
                .await;
            let expected: bool = expected.expect("a table").get(0);
            let statement = fill(statement);
            assert_eq!(may(&client, &statement).await, expected, "{statement}");
            attempts += 1;
        }
        for statement in BY_OWNER {
            let statement = fill(statement);
            assert!(!may(&client, &statement).await, "{statement}");
            attempts += 1;
        }
        tables.push(table);
    }
    // Of upstream's tables, the role writes the indexer's two columns.
    let upstream: Vec<_> = allowed
        .iter()
        .filter(|text| !text.contains("status_indexer."))
        .collect();
    assert_eq!(upstream.len(), 2, "{upstream:?}");
    assert!(
        upstream
            .iter()
            .all(|text| text.starts_with("update runs_v3 set run_"))
    );
    assert!(tables.len() >= 11, "{tables:?}");
    println!("{attempts} attempts on {} tables", tables.len());
}

/// Attempts beyond tables. `OWNER` is the owner of the tables, `PID` a session of another role.
const OTHERS: [&str; 34] = [
    "create schema mine",
    "create table public.mine ()",
    "create table status_indexer.mine ()",
    "create view status_indexer.mine as select 1",
    "create function status_indexer.mine() returns int language sql as 'select 1'",
    "create sequence status_indexer.mine",
    "create type status_indexer.mine as enum ()",
    "drop schema status_indexer cascade",
    "alter schema status_indexer rename to mine",
    "drop view status_indexer.runs",
    "alter sequence status_indexer.leader_heartbeat restart",
    "select nextval('status_indexer.queue_id_seq')",
    "select setval('status_indexer.queue_id_seq', 1)",
    "select status_indexer.enqueue('F', 1)",
    "select status_indexer.enqueue_inserted('{}')",
    "set role OWNER",
    "set session authorization OWNER",
    "alter role current_user superuser",
    "create role mine",
    "reassign owned by OWNER to current_user",
    "drop owned by OWNER",
    "set session_replication_role = replica",
    "alter database DATABASE set work_mem = '1MB'",
    "create publication mine for all tables",
    "create event trigger mine on ddl_command_start execute function status_indexer.enqueue_run()",
    "copy (select 1) to program 'true'",
    "copy (select 1) to '/tmp/mine'",
    "create temp table mine (x text); copy mine from '/etc/passwd'",
    "select lo_import('/etc/passwd')",
    "select pg_read_file('postgresql.conf')",
    "select pg_ls_dir('.')",
    "select pg_reload_conf()",
    "select pg_terminate_backend(PID)",
    "select rolpassword from pg_authid",
];

#[tokio::test]
async fn the_daemons_role_can_do_nothing_beyond_tables() {
    const FUNCTIONS: &str = "\
select p.oid::regprocedure::text
  from pg_proc p
 where p.pronamespace = 'status_indexer'::regnamespace";
    let (database, app, indexer) = migrated().await;
    let admin = database.client().await;
    let pid = number(&admin, "select pg_backend_pid()::int8")
        .await
        .to_string();
    let client = client_of(&database, &indexer).await;
    let mut attempts: Vec<String> = OTHERS
        .iter()
        .map(|text| {
            text.replace("OWNER", &app)
                .replace("PID", &pid)
                .replace("DATABASE", database.name())
        })
        .collect();
    for row in admin
        .query(FUNCTIONS, &[])
        .await
        .expect("the catalog can be read")
    {
        let function: String = row.get(0);
        attempts.push(format!("drop function {function} cascade"));
        attempts.push(format!("alter function {function} security definer"));
        attempts.push(format!("alter function {function} owner to current_user"));
    }
    assert!(attempts.len() > 100, "{}", attempts.len());
    for attempt in &attempts {
        assert!(!may(&client, attempt).await, "{attempt}");
    }
    // Not possible in a transaction.
    for statement in [
        "drop database postgres",
        "alter system set work_mem = '1MB'",
        "create database mine",
    ] {
        let error = client.batch_execute(statement).await.expect_err(statement);
        assert_eq!(
            error.code(),
            Some(&SqlState::INSUFFICIENT_PRIVILEGE),
            "{statement}"
        );
    }
    let row = admin
        .query_one("select count(*) from pg_largeobject_metadata", &[])
        .await;
    assert_eq!(row.expect("the catalog can be read").get::<_, i64>(0), 0);
}
