//! The view for readers, whose columns have the types of upstream's.
//!
//! Upstream may change these types at any time. The view works on, with its old types, and `up`
//! creates it again with the new ones and the same privileges.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::migrator::Migrator;
use super::query::{query, query_bool, query_one};
use super::render::render;
use super::steps::VIEW;
use super::tables::Tables;
use crate::pg::quote_ident;

/// The types of the columns of a run's key, as SQL.
pub(super) struct ColumnTypes {
    flow_id: String,
    run_number: String,
}

impl ColumnTypes {
    /// Reads them from the catalog.
    pub(super) async fn of(client: &Client, tables: &Tables) -> anyhow::Result<Self> {
        // Without the length of a varchar, which the result of a function cannot have.
        const TYPES: &str = "\
-- migrate.column_types
select (select format_type(atttypid, null) from pg_attribute where attrelid = r and attname = 'flow_id'),
       (select format_type(atttypid, null) from pg_attribute where attrelid = r and attname = 'run_number')
  from to_regclass($1) r";
        let runs = tables.runs.quoted();
        let row = query_one(client, TYPES, &[(&runs, Type::TEXT)]).await?;
        Ok(Self {
            flow_id: row.get(0),
            run_number: row.get(1),
        })
    }

    /// The statements that create the view and its function.
    pub(super) fn view(&self, tables: &Tables) -> String {
        let types = [
            ("flow_id_type", self.flow_id.as_str()),
            ("run_number_type", &self.run_number),
        ];
        render(VIEW, tables, &types)
    }
}

impl Migrator<'_> {
    /// Creates the view again if it is missing or has other types. Returns whether it was.
    pub(super) async fn restore_view(&self, types: &ColumnTypes) -> anyhow::Result<bool> {
        const INTACT: &str = "\
-- migrate.view_intact
select count(*) = 2
  from pg_attribute
 where attrelid = to_regclass('status_indexer.run_status')
   and (attname, format_type(atttypid, null)) in (('flow_id', $1), ('run_number', $2))";
        let params = [
            (&types.flow_id as _, Type::TEXT),
            (&types.run_number as _, Type::TEXT),
        ];
        if query_bool(&self.client, INTACT, &params).await? {
            return Ok(false);
        }
        let grants = self.view_grants().await?;
        let sql = format!(
            "drop view if exists status_indexer.run_status;
             drop function if exists status_indexer.run_statuses();
             {}{grants}",
            types.view(&self.tables)
        );
        self.in_transaction(&sql).await?;
        Ok(true)
    }

    /// The statements that grant the privileges on the view that others have now.
    async fn view_grants(&self) -> anyhow::Result<String> {
        const GRANTS: &str = "\
-- migrate.view_grants
select case a.grantee when 0 then null else pg_get_userbyid(a.grantee)::text end, a.privilege_type,
       a.is_grantable
  from pg_class c
 cross join aclexplode(c.relacl) a
 where c.oid = to_regclass('status_indexer.run_status')
   and a.grantee <> c.relowner";
        let rows = query(&self.client, GRANTS, &[]).await?;
        let grants = rows.iter().map(|row| {
            let grantee: Option<&str> = row.get(0);
            let grantee = grantee.map_or_else(|| "public".to_owned(), quote_ident);
            let option = if row.get(2) { " with grant option" } else { "" };
            let privilege: &str = row.get(1);
            format!("grant {privilege} on status_indexer.run_status to {grantee}{option};\n")
        });
        Ok(grants.collect())
    }
}
