//! Grants a role just what `run` needs, and takes back what was granted.
//!
//! What the role already had on upstream's tables is not ours to take back, so each privilege that
//! was added is recorded when it is added.

use anyhow::{Context as _, ensure};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::tables::Tables;
use crate::pg::{quote_ident, quote_literal};

/// Privileges on the indexer's own objects and on its column; they go with these. Each object by
/// its name: writing to the view would be writing to upstream's table, with its owner's rights.
const OWN: &str = "\
-- migrate.grant_own
grant select, insert, update, delete on status_indexer.queue, status_indexer.timers to {role};
grant select, update on status_indexer.state to {role};
grant select on status_indexer.schema_history, status_indexer.run_status to {role};
grant select, update on sequence status_indexer.notify_suppressed_until, status_indexer.leader_heartbeat to {role};
grant update (run_status) on {runs} to {role};";

/// What else the role needs: recorded where it was added.
struct Need {
    object: String,
    privilege: &'static str,
}

impl Need {
    fn all(tables: &Tables) -> Vec<Self> {
        let usage = |schema: &str| Self {
            object: quote_ident(schema),
            privilege: "USAGE",
        };
        let select = |object: String| Self {
            object,
            privilege: "SELECT",
        };
        vec![
            usage("status_indexer"),
            usage(&tables.runs.schema),
            usage(&tables.metadata.schema),
            select(tables.runs.quoted()),
            select(tables.metadata.quoted()),
        ]
    }

    /// Whether the role can do it already, as owner, by a grant or through another role.
    async fn is_met(&self, client: &Client, role: &str) -> anyhow::Result<bool> {
        let sql = if self.privilege == "USAGE" {
            "-- migrate.has_usage\nselect has_schema_privilege($1::text::name, to_regnamespace($2)::oid, 'usage')"
        } else {
            "-- migrate.has_select\nselect has_table_privilege($1::text::name, to_regclass($2)::oid, 'select')"
        };
        let row = client
            .query_typed_one(sql, &[(&role, Type::TEXT), (&self.object, Type::TEXT)])
            .await?;
        Ok(row.get(0))
    }

    fn grant(&self, role: &str) -> String {
        let grant = statement("grant", self.privilege, &self.object, "to", role);
        format!(
            "{grant}insert into status_indexer.grants (grantee, object, privilege) values ({}, {}, '{}') on conflict do nothing;\n",
            quote_literal(role),
            quote_literal(&self.object),
            self.privilege
        )
    }
}

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
    let mut sql = String::from("begin;\n");
    sql.push_str(
        &OWN.replace("{role}", &quote_ident(role))
            .replace("{runs}", &tables.runs.quoted()),
    );
    sql.push('\n');
    let needs = Need::all(tables);
    for need in &needs {
        if !need.is_met(client, role).await? {
            sql.push_str(&need.grant(role));
        }
    }
    sql.push_str("commit;");
    if let Err(error) = client.batch_execute(&sql).await {
        let _ = client.batch_execute("rollback").await;
        return Err(error).with_context(|| format!("cannot grant to {role}"));
    }
    // Whoever may not grant is told so by a warning alone.
    for need in &needs {
        ensure!(
            need.is_met(client, role).await?,
            "{role} still lacks {} on {}, which this role may not grant: have its owner do it",
            need.privilege,
            need.object
        );
    }
    Ok(())
}

/// Takes back what [`grant`] added to objects that are not ours.
///
/// # Errors
/// If a revoke is refused.
pub(super) async fn revoke(client: &Client) -> anyhow::Result<()> {
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
        sql.push_str(&statement("revoke", &privilege, &object, "from", &role));
    }
    sql.push_str("delete from status_indexer.grants;\ncommit;");
    if let Err(error) = client.batch_execute(&sql).await {
        let _ = client.batch_execute("rollback").await;
        return Err(error).context("cannot take back what was granted");
    }
    Ok(())
}

fn statement(verb: &str, privilege: &str, object: &str, preposition: &str, role: &str) -> String {
    let role = quote_ident(role);
    let kind = if privilege == "USAGE" {
        "schema"
    } else {
        "table"
    };
    format!("{verb} {privilege} on {kind} {object} {preposition} {role};\n")
}
