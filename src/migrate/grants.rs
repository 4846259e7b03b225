//! Grants a role just what `run` needs, and takes back what was granted.
//!
//! What the role already had on upstream's tables is not ours to take back, so each privilege that
//! was added is recorded when it is added.

use anyhow::{Context as _, ensure};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::tables::Tables;
use crate::pg::quote_ident;

/// Privileges on the indexer's own objects; they go with the objects.
const OWN: &str = "\
-- migrate.grant_own
grant usage on schema status_indexer to {role};
grant select, insert, update, delete on all tables in schema status_indexer to {role};
revoke insert, update, delete on status_indexer.schema_history, status_indexer.grants from {role};
grant usage, select, update on all sequences in schema status_indexer to {role};
grant execute on all functions in schema status_indexer to {role};
revoke execute on function status_indexer.enqueue_row(), status_indexer.enqueue_changed() from {role};";

const HAS: &str = "\
-- migrate.has_privilege
select exists (
  select
    from (select relacl as acl from pg_class where oid = to_regclass($1) and $2 = 'SELECT'
          union all
          select nspacl from pg_namespace where oid = to_regnamespace($1) and $2 = 'USAGE') a,
         aclexplode(a.acl) e
   where e.grantee in (0, to_regrole($3)::oid)
     and e.privilege_type = $2)";

/// Grants `role` what the daemon needs.
///
/// # Errors
/// If there is no such role, or the grants are refused.
pub(super) async fn grant(client: &Client, tables: &Tables, role: &str) -> anyhow::Result<()> {
    let known = client
        .query_typed_opt(
            "-- migrate.role\nselect from pg_roles where rolname = $1",
            &[(&role, Type::TEXT)],
        )
        .await?;
    ensure!(known.is_some(), "there is no role {role}: create it first");
    let quoted = quote_ident(role);
    let mut wanted = vec![
        (quote_ident(&tables.runs.schema), "USAGE"),
        (tables.runs.quoted(), "SELECT"),
        (tables.metadata.quoted(), "SELECT"),
    ];
    if tables.runs.schema != tables.metadata.schema {
        wanted.push((quote_ident(&tables.metadata.schema), "USAGE"));
    }
    let mut sql = format!("begin;\n{}\n", OWN.replace("{role}", &quoted));
    // It goes with the column.
    sql.push_str(&format!(
        "grant update (run_status) on {} to {quoted};\n",
        tables.runs.quoted()
    ));
    for (object, privilege) in &wanted {
        let has: bool = client
            .query_typed_one(
                HAS,
                &[
                    (object, Type::TEXT),
                    (privilege, Type::TEXT),
                    (&quoted, Type::TEXT),
                ],
            )
            .await?
            .get(0);
        if !has {
            sql.push_str(&statement("grant", privilege, object, "to", &quoted));
            sql.push_str(&format!(
                "insert into status_indexer.grants (grantee, object, privilege) values ({}, {}, '{privilege}') on conflict do nothing;\n",
                crate::pg::quote_literal(role),
                crate::pg::quote_literal(object),
            ));
        }
    }
    sql.push_str("commit;");
    if let Err(error) = client.batch_execute(&sql).await {
        let _ = client.batch_execute("rollback").await;
        return Err(error).with_context(|| format!("cannot grant to {role}"));
    }
    Ok(())
}

/// Takes back what [`grant`] added to objects that are not ours.
///
/// # Errors
/// If a revoke is refused.
pub(super) async fn revoke(client: &Client, _tables: &Tables) -> anyhow::Result<()> {
    let there: bool = client
        .query_one(
            "-- migrate.grants_there\nselect to_regclass('status_indexer.grants') is not null",
            &[],
        )
        .await?
        .get(0);
    if !there {
        return Ok(());
    }
    let rows = client
        .query(
            "-- migrate.granted
select g.grantee, g.object, g.privilege
  from status_indexer.grants g
  join pg_roles r on r.rolname = g.grantee",
            &[],
        )
        .await?;
    let mut sql = String::from("begin;\n");
    for row in rows {
        let (role, object, privilege): (String, String, String) =
            (row.get(0), row.get(1), row.get(2));
        sql.push_str(&statement(
            "revoke",
            &privilege,
            &object,
            "from",
            &quote_ident(&role),
        ));
    }
    sql.push_str("delete from status_indexer.grants;\ncommit;");
    if let Err(error) = client.batch_execute(&sql).await {
        let _ = client.batch_execute("rollback").await;
        return Err(error).context("cannot take back what was granted");
    }
    Ok(())
}

fn statement(verb: &str, privilege: &str, object: &str, preposition: &str, role: &str) -> String {
    let kind = if privilege == "USAGE" {
        "schema"
    } else {
        "table"
    };
    format!("{verb} {privilege} on {kind} {object} {preposition} {role};\n")
}
