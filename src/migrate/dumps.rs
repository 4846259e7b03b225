//! Finds roles that could dump the database before the indexer was installed, and now cannot.
//!
//! `pg_dump` locks and reads every table and sequence, and fails at the first that it may not read.

use tokio_postgres::Client;

use super::migrator::Migrator;
use super::query::query;

impl Migrator<'_> {
    /// Logs the login roles that can read everything in the database except the indexer's schema.
    pub(super) async fn warn_of_dumps(&self) -> anyhow::Result<()> {
        let roles = without_dump(&self.client).await?;
        if !roles.is_empty() {
            tracing::warn!(
                roles = roles.join(", "),
                "these roles can read all tables of the database except those of the schema \
                 status_indexer, so a dump by one of them fails: run `status-indexer migrate up \
                 --grant-dump-to ROLE` for each role that makes dumps"
            );
        }
        Ok(())
    }
}

/// The login roles that can read everything in the database except the indexer's schema, 20 at most.
pub(super) async fn without_dump(client: &Client) -> anyhow::Result<Vec<String>> {
    // The members of `pg_read_all_data` can read every schema, and owners and superusers too.
    const DUMP_ROLES: &str = "\
-- migrate.dump_roles
with relations as (
  select c.oid, c.relkind, n.oid as schema, n.nspname = 'status_indexer' as own
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
   where c.relkind in ('r', 'p', 'S')
     and c.relpersistence <> 't'
     and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
), roles as (
  select oid, rolname
    from pg_roles
   where rolcanlogin
     and not rolsuper
), unreadable as (
  select r.rolname, c.own
    from roles r, relations c
   where not has_schema_privilege(r.oid, c.schema, 'usage')
      or not case c.relkind
               when 'S' then has_sequence_privilege(r.oid, c.oid, 'select')
               else has_table_privilege(r.oid, c.oid, 'select')
             end
)
select rolname::text
  from unreadable
 group by rolname
having bool_and(own)
 order by 1
 limit 20";
    let rows = query(client, DUMP_ROLES, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
