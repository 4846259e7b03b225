//! `migrate up --no-ui`: removes what `--ui` has added, and nothing else.
//!
//! The stored ends must not remain: with the state saying that none are kept, each of them would be
//! drift. Setting them to null would write every run, so the column is dropped and added again, which
//! takes one short lock and writes no row. `run_status` is not touched, so the column stays valid.

use anyhow::Context as _;
use tokio_postgres::types::Type;

use super::grants::grant_again;
use super::migrator::Migrator;
use super::query::query;
use super::steps::{self, COLUMN_VERSION, Kind, STATE_VERSION};
use super::up::keeps_finish;

impl Migrator<'_> {
    /// Removes the ends of runs and the indexes of the web UI. Returns whether there were any. Can be
    /// repeated, also after an interruption: only indexes can be left then.
    pub(super) async fn remove_ui(&self, applied: &[i32]) -> anyhow::Result<bool> {
        let is_installed = applied.contains(&STATE_VERSION) && applied.contains(&COLUMN_VERSION);
        if !is_installed {
            return Ok(false);
        }
        let is_recorded = applied.iter().any(|version| steps::is_of_ui(*version));
        let mut removed = is_recorded || keeps_finish(&self.client).await?;
        if removed {
            let sql = self.forget_finish().await?;
            self.in_transaction(&sql).await.context(
                "cannot drop the column run_finished_at: drop the objects that depend on it first",
            )?;
            tracing::info!("the ends of runs are not kept any more");
        }
        for step in steps::indexes().filter(|step| step.kind == Kind::UiIndex) {
            removed |= self.drop_index(step).await?;
        }
        Ok(removed)
    }

    /// The statements that empty the column, with the privileges on it, and forget the steps.
    async fn forget_finish(&self) -> anyhow::Result<String> {
        let runs = self.tables.runs.quoted();
        let grants = self.finish_grants().await?;
        let mut versions: Vec<String> = Vec::new();
        for step in steps::indexes().filter(|step| step.kind == Kind::UiIndex) {
            versions.push(step.version.to_string());
        }
        Ok(format!(
            "-- migrate.forget_finish
             alter table {runs} drop column run_finished_at;
             alter table {runs} add column run_finished_at bigint;
             {grants}
             update status_indexer.state
                set keeps_finished_at = false;
             delete from status_indexer.schema_history
              where version in ({});",
            versions.join(", ")
        ))
    }

    /// The statements that grant the privileges on the column that roles have now.
    async fn finish_grants(&self) -> anyhow::Result<String> {
        const GRANTS: &str = "\
-- migrate.finish_grants
select case a.grantee when 0 then null else pg_get_userbyid(a.grantee)::text end, a.privilege_type,
       a.is_grantable
  from pg_attribute c
 cross join aclexplode(c.attacl) a
 where c.attrelid = to_regclass($1)
   and c.attname = 'run_finished_at'";
        let runs = self.tables.runs.quoted();
        let rows = query(&self.client, GRANTS, &[(&runs, Type::TEXT)]).await?;
        let grants = rows.iter().map(|row| {
            let privilege: &str = row.get(1);
            grant_again(row, &format!("{privilege} (run_finished_at)"), &runs)
        });
        Ok(grants.collect())
    }
}
