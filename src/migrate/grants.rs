//! Grants a role exactly the privileges that `run` needs, and revokes them.
//!
//! A privilege that the role already had on upstream's objects must survive `migrate down`, so each
//! one that is added there is recorded in the same transaction, and only those are revoked.

use anyhow::{Context as _, ensure};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::query::{exists, query, query_bool, query_opt, transaction};
use super::render::render;
use super::tables::Tables;
use crate::pg::{quote_ident, quote_literal};

/// Privileges on the indexer's own objects and its column; dropping these revokes them. Each object
/// is named, because a write to the view would write to upstream's table as the view's owner. The other
/// columns of the state describe the installation, which only the owner changes.
const GRANT_OWN: &str = "\
-- migrate.grant_own
grant select, insert, update, delete on status_indexer.queue, status_indexer.timers to {{role}};
grant select on status_indexer.state to {{role}};
revoke update on status_indexer.state from {{role}};
grant update (cutoff_secs, generation, valid_since, scan_flow_id, scan_run_number, scan_started_at,
              scan_compared, scan_corrected, deadlines_from, deadlines_until,
              first_queue_id, read_bounds_version)
   on status_indexer.state to {{role}};
grant select on status_indexer.schema_history, status_indexer.read_state, status_indexer.runs to {{role}};
grant select on sequence status_indexer.queue_id_seq to {{role}};
grant select, update on sequence status_indexer.notify_suppressed_until, status_indexer.leader_heartbeat to {{role}};
grant update (run_status, run_finished_at) on {{runs}} to {{role}};
";

/// The statement that grants a privilege again that a role had. A row has the grantee, null for public;
/// the privilege; and whether the grantee may grant it to others.
pub(super) fn grant_again(row: &Row, privilege: &str, object: &str) -> String {
    let grantee: Option<&str> = row.get(0);
    let grantee = grantee.map_or_else(|| "public".to_owned(), quote_ident);
    let option = if row.get(2) { " with grant option" } else { "" };
    format!("grant {privilege} on {object} to {grantee}{option};\n")
}

/// A privilege on an object or on one of its columns, as a statement of [`GRANT_OWN`] grants it.
#[derive(Debug, PartialEq, Eq)]
struct Own {
    privilege: &'static str,
    /// A name with its schema, or the placeholder of a table.
    object: &'static str,
    column: Option<&'static str>,
}

/// The privileges that [`GRANT_OWN`] grants, one by one.
fn own_privileges() -> Vec<Own> {
    let mut all = Vec::new();
    for statement in GRANT_OWN.split(';') {
        // The name of the statements is before the first of them.
        let statement = statement.trim_start_matches("-- migrate.grant_own").trim();
        let granted = statement
            .strip_prefix("grant ")
            .and_then(|grant| grant.strip_suffix(" to {{role}}"))
            .and_then(|grant| grant.split_once(" on "));
        let Some((privileges, objects)) = granted else {
            continue;
        };
        let objects = objects.trim_start_matches("sequence ");
        let (names, columns) = match privileges.split_once(" (") {
            Some((name, columns)) => (name, Some(columns.trim_end().trim_end_matches(')'))),
            None => (privileges, None),
        };
        for object in objects.split(", ") {
            for privilege in names.split(", ") {
                let on = |column| Own {
                    privilege,
                    object,
                    column,
                };
                match columns {
                    Some(columns) => {
                        all.extend(columns.split(',').map(|name| on(Some(name.trim()))))
                    }
                    None => all.push(on(None)),
                }
            }
        }
    }
    all
}

/// What `run` needs and the session's role lacks: what `--grant-to` would grant.
///
/// # Errors
/// If the catalog cannot be read.
pub(super) async fn missing(client: &Client, tables: &Tables) -> anyhow::Result<Vec<String>> {
    // By the catalog: `to_regclass` raises an error in a schema that the role may not use.
    const MISSING: &str = "\
-- migrate.missing_privileges
select format('%s on %I.%I', string_agg(upper(w.privilege) || coalesce(' (' || w.column_name || ')', ''), ', '
                                        order by w.position),
              w.schema, w.name)
  from unnest($1::text[], $2::text[], $3::text[], $4::text[]) with ordinality
         w (schema, name, privilege, column_name, position)
  join pg_namespace n on n.nspname = w.schema
  join pg_class c on c.relnamespace = n.oid and c.relname = w.name
 where case
         when w.column_name is not null then
           exists (select
                     from pg_attribute a
                    where a.attrelid = c.oid
                      and a.attname = w.column_name
                      and not has_column_privilege(c.oid, a.attnum, w.privilege))
         when c.relkind = 'S' then not has_sequence_privilege(c.oid, w.privilege)
         else not has_table_privilege(c.oid, w.privilege)
       end
 group by w.schema, w.name
 order by min(w.position)";
    const MISSING_USAGE: &str = "\
-- migrate.missing_usage
select format('USAGE on schema %I', nspname)
  from pg_namespace
 where nspname = any ($1)
   and not has_schema_privilege(oid, 'usage')
 order by 1";
    let (runs, metadata) = (&tables.runs, &tables.metadata);
    let schemas = ["status_indexer", &runs.schema, &metadata.schema];
    let rows = query(client, MISSING_USAGE, &[(&&schemas[..], Type::TEXT_ARRAY)]).await?;
    let mut missing: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let own = own_privileges();
    let upstream = ["{{runs}}", "{{metadata}}"].map(|object| Own {
        privilege: "select",
        object,
        column: None,
    });
    let wanted: Vec<&Own> = own.iter().chain(&upstream).collect();
    let (schemas, names): (Vec<&str>, Vec<&str>) = wanted
        .iter()
        .map(|own| match own.object {
            "{{runs}}" => (&*runs.schema, &*runs.name),
            "{{metadata}}" => (&*metadata.schema, &*metadata.name),
            object => object.split_once('.').unwrap_or(("", object)),
        })
        .unzip();
    let privileges: Vec<&str> = wanted.iter().map(|own| own.privilege).collect();
    let columns: Vec<Option<&str>> = wanted.iter().map(|own| own.column).collect();
    let params = [
        (&schemas as _, Type::TEXT_ARRAY),
        (&names as _, Type::TEXT_ARRAY),
        (&privileges as _, Type::TEXT_ARRAY),
        (&columns as _, Type::TEXT_ARRAY),
    ];
    let rows = query(client, MISSING, &params).await?;
    missing.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    Ok(missing)
}

/// What `pg_dump` reads in the indexer's own schema.
const GRANT_DUMP: &str = "\
-- migrate.grant_dump
grant select on all tables in schema status_indexer to {{role}};
grant select on all sequences in schema status_indexer to {{role}};
";

/// A privilege that is recorded if it is added: one on an object that `migrate down` keeps.
struct Privilege {
    /// The object's name, quoted.
    object: String,
    /// `USAGE` on a schema, or `SELECT` on a table.
    name: &'static str,
}

impl Privilege {
    fn all(tables: &Tables) -> Vec<Self> {
        let select = |object: String| Self {
            object,
            name: "SELECT",
        };
        vec![
            Self::usage("status_indexer"),
            Self::usage(&tables.runs.schema),
            Self::usage(&tables.metadata.schema),
            select(tables.runs.quoted()),
            select(tables.metadata.quoted()),
        ]
    }

    fn usage(schema: &str) -> Self {
        Self {
            object: quote_ident(schema),
            name: "USAGE",
        }
    }

    /// Whether the role has it: as owner, by a grant, or through another role.
    async fn is_held(&self, client: &Client, role: &str) -> anyhow::Result<bool> {
        const HAS_USAGE: &str = "\
-- migrate.has_usage
select has_schema_privilege($1::text::name, to_regnamespace($2)::oid, 'usage')";
        const HAS_SELECT: &str = "\
-- migrate.has_select
select has_table_privilege($1::text::name, to_regclass($2)::oid, 'select')";
        let sql = if self.name == "USAGE" {
            HAS_USAGE
        } else {
            HAS_SELECT
        };
        let params = [(&role as _, Type::TEXT), (&self.object as _, Type::TEXT)];
        query_bool(client, sql, &params).await
    }

    /// The statements that grant it and record the grant.
    fn grant(&self, role: &str) -> String {
        let grant = statement("grant", self.name, &self.object, "to", role);
        format!(
            "{grant}insert into status_indexer.grants (grantee, object, privilege)
values ({}, {}, '{}')
on conflict do nothing;\n",
            quote_literal(role),
            quote_literal(&self.object),
            self.name
        )
    }
}

/// Grants `role` the privileges that the daemon needs.
///
/// # Errors
/// If the role does not exist, or a grant is refused.
pub(super) async fn grant(client: &Client, tables: &Tables, role: &str) -> anyhow::Result<()> {
    grant_all(client, tables, role, GRANT_OWN, &Privilege::all(tables)).await
}

/// Grants `role` what a dump of the database needs in the indexer's schema.
///
/// # Errors
/// If the role does not exist, or a grant is refused.
pub(super) async fn grant_dump(client: &Client, tables: &Tables, role: &str) -> anyhow::Result<()> {
    grant_all(
        client,
        tables,
        role,
        GRANT_DUMP,
        &[Privilege::usage("status_indexer")],
    )
    .await
}

/// Grants the privileges `own`, and records those of `privileges` that the role did not have.
async fn grant_all(
    client: &Client,
    tables: &Tables,
    role: &str,
    own: &str,
    privileges: &[Privilege],
) -> anyhow::Result<()> {
    check_role_exists(client, role).await?;
    let mut sql = render(own, tables, &[("role", &quote_ident(role))]);
    for privilege in privileges {
        if !privilege.is_held(client, role).await? {
            sql.push_str(&privilege.grant(role));
        }
    }
    transaction(client, &sql)
        .await
        .with_context(|| format!("cannot grant privileges to the role {role}"))?;
    // PostgreSQL reports a privilege that the session's role cannot grant by a warning only.
    for privilege in privileges {
        ensure!(
            privilege.is_held(client, role).await?,
            "the role {role} lacks {} on {}, and the migrating role cannot grant it: ask the owner \
             of {} to grant it",
            privilege.name,
            privilege.object,
            privilege.object
        );
    }
    Ok(())
}

async fn check_role_exists(client: &Client, role: &str) -> anyhow::Result<()> {
    const ROLE: &str = "\
-- migrate.role
select
  from pg_roles
 where rolname = $1";
    let found = query_opt(client, ROLE, &[(&role, Type::TEXT)]).await?;
    ensure!(
        found.is_some(),
        "the role {role} does not exist: create it first"
    );
    Ok(())
}

/// Revokes the privileges that [`grant`] recorded.
///
/// # Errors
/// If a revoke is refused.
pub(super) async fn revoke(client: &Client) -> anyhow::Result<()> {
    const GRANTED: &str = "\
-- migrate.granted
select g.grantee, g.object, g.privilege
  from status_indexer.grants g
  join pg_roles r on r.rolname = g.grantee";
    if !exists(client, "status_indexer.grants").await? {
        return Ok(());
    }
    let mut sql = String::new();
    for row in query(client, GRANTED, &[]).await? {
        let (role, object, privilege) = (row.get(0), row.get(1), row.get(2));
        sql.push_str(&statement("revoke", privilege, object, "from", role));
    }
    sql.push_str("delete from status_indexer.grants;");
    transaction(client, &sql)
        .await
        .context("cannot revoke the granted privileges")
}

/// A `grant` or `revoke` statement. `object` is quoted.
fn statement(verb: &str, privilege: &str, object: &str, preposition: &str, role: &str) -> String {
    let role = quote_ident(role);
    let kind = if privilege == "USAGE" {
        "schema"
    } else {
        "table"
    };
    format!("{verb} {privilege} on {kind} {object} {preposition} {role};\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_statement_of_the_grants_is_read() {
        let words = GRANT_OWN.split_whitespace();
        let named: BTreeSet<&str> = words
            .map(|word| word.trim_end_matches([',', ';']))
            .filter(|word| word.starts_with("status_indexer.") || *word == "{{runs}}")
            .collect();
        let all = own_privileges();
        let read: BTreeSet<&str> = all.iter().map(|own| own.object).collect();
        assert_eq!(read, named, "{all:?}");
        for (object, column) in [
            ("{{runs}}", "run_status"),
            ("status_indexer.state", "first_queue_id"),
        ] {
            assert!(all.contains(&Own {
                privilege: "update",
                object,
                column: Some(column),
            }));
        }
        assert!(all.iter().all(|own| !own.privilege.contains([' ', '('])));
    }
}
