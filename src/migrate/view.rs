//! The view for readers, whose columns have the types of upstream's.
//!
//! Upstream may change these types at any time. The view works on, with its old types, and `up`
//! creates it again with the new ones and the same privileges.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::grants::grant_again;
use super::migrator::Migrator;
use super::query::{query, query_bool};
use super::render::render;
use super::steps::VIEW;
use super::tables::Tables;
use crate::pg::quote_ident;

/// The status of a pending run and its end.
const EVALUATE: &str = "(status_indexer.status_now(r.flow_id::text, r.run_number::bigint, r.last_heartbeat_ts::bigint))";

/// The columns of upstream's runs table, in their order, with their types as SQL.
pub(super) struct Columns(Vec<(String, String)>);

impl Columns {
    /// Reads them from the catalog.
    pub(super) async fn of(client: &Client, tables: &Tables) -> anyhow::Result<Self> {
        // Without the length of a varchar, which the result of a function cannot have.
        const COLUMNS: &str = "\
-- migrate.columns
select attname::text, format_type(atttypid, null)
  from pg_attribute
 where attrelid = to_regclass($1)
   and attnum > 0
   and not attisdropped
   and attname not in ('run_status', 'run_finished_at')
 order by attnum";
        let runs = tables.runs.quoted();
        let rows = query(client, COLUMNS, &[(&runs, Type::TEXT)]).await?;
        Ok(Self(
            rows.iter().map(|row| (row.get(0), row.get(1))).collect(),
        ))
    }

    /// Whether the view exists and has these columns, with the ends of runs where these are kept.
    pub(super) async fn are_in_view(
        &self,
        client: &Client,
        keeps_finish: bool,
    ) -> anyhow::Result<bool> {
        const INTACT: &str = "\
-- migrate.view_intact
select coalesce(array_agg(attname::text order by attnum), '{}') = $1
       and coalesce(array_agg(format_type(atttypid, null) order by attnum), '{}') = $2
  from pg_attribute
 where attrelid = to_regclass('status_indexer.runs')
   and attnum > 0";
        let (mut names, mut types): (Vec<&str>, Vec<&str>) =
            self.0.iter().map(|(name, kind)| (&**name, &**kind)).unzip();
        names.push("status");
        types.push("text");
        if keeps_finish {
            names.push("finished_at");
            types.push("bigint");
        }
        let params = [
            (&names as _, Type::TEXT_ARRAY),
            (&types as _, Type::TEXT_ARRAY),
        ];
        query_bool(client, INTACT, &params).await
    }

    /// The statements that create the view and its function, with the ends of runs where these are kept.
    pub(super) fn view(&self, tables: &Tables, keeps_finish: bool) -> String {
        let list = |column: fn(&str, &str) -> String| {
            let columns = self.0.iter();
            let columns: Vec<String> = columns
                .map(|(name, kind)| column(&quote_ident(name), kind))
                .collect();
            columns.join(", ")
        };
        let kept = |sql: &'static str| if keeps_finish { sql } else { "" };
        let finish_evaluated = if keeps_finish {
            format!(", {EVALUATE}.finished_at")
        } else {
            String::new()
        };
        let values = [
            ("columns", &*list(|name, _| format!("r.{name}"))),
            (
                "columns_with_casts",
                // The casts keep the function valid after a change of a column's type. In the parts they
                // would hide the columns from the planner.
                &list(|name, kind| format!("u.{name}::{kind}")),
            ),
            (
                "columns_with_types",
                &list(|name, kind| format!("{name} {kind}")),
            ),
            ("finish_type", kept(", finished_at bigint")),
            ("finish", kept(", u.finished_at")),
            ("columns_of_view", &list(|name, _| format!("p.{name}"))),
            ("finish_of_view", kept(", p.finished_at")),
            ("finish_of_running", kept(", null::bigint as finished_at")),
            ("finish_stored", kept(", r.run_finished_at")),
            ("finish_evaluated", &*finish_evaluated),
            ("evaluate", EVALUATE),
        ];
        render(VIEW, tables, &values)
    }
}

impl Migrator<'_> {
    /// Creates the view again if it is missing or has other columns. Returns whether it was.
    pub(super) async fn restore_view(
        &self,
        columns: &Columns,
        keeps_finish: bool,
    ) -> anyhow::Result<bool> {
        if columns.are_in_view(&self.client, keeps_finish).await? {
            return Ok(false);
        }
        let grants = self.view_grants().await?;
        let sql = format!(
            "drop view if exists status_indexer.runs;
             drop function if exists status_indexer.parts();
             drop function if exists status_indexer.pending_runs();
             {}{grants}",
            columns.view(&self.tables, keeps_finish)
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
 where c.oid = to_regclass('status_indexer.runs')
   and a.grantee <> c.relowner";
        let rows = query(&self.client, GRANTS, &[]).await?;
        let grants = rows
            .iter()
            .map(|row| grant_again(row, row.get(1), "status_indexer.runs"));
        Ok(grants.collect())
    }
}
