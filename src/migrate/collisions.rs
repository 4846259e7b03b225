//! Finds objects of others that have the names of the indexer's.
//!
//! An object is the indexer's by more than its name: a trigger by the schema of its function, an index
//! by its table and definition, everything in the schema by the history. `up` stops before it changes
//! anything if a name is taken; `down` and `status` disregard the other object.

use anyhow::{bail, ensure};
use tokio_postgres::types::Type;

use super::index;
use super::installed;
use super::migrator::Migrator;
use super::query::{exists, query, query_one};
use super::steps;
use crate::pg::quote_ident;

impl Migrator<'_> {
    /// An error if an object of somebody else has the name of one that `up` would create.
    pub(super) async fn check_names_are_free(&self) -> anyhow::Result<()> {
        self.check_schema_is_empty().await?;
        for trigger in steps::triggers() {
            let table = trigger.table(&self.tables).quoted();
            ensure!(
                !self.trigger_name_is_taken(&table, trigger.name).await?,
                "{table} has a trigger {} that the indexer did not create: rename or drop that \
                 trigger first",
                trigger.name
            );
        }
        for step in steps::indexes() {
            let name = index::qualified_name(&self.tables, step);
            ensure!(
                !exists(&self.client, &name).await?
                    || index::validity(&self.client, &self.tables, step)
                        .await?
                        .is_some(),
                "{name} exists, but is not the index that the indexer creates: rename or drop it first"
            );
        }
        Ok(())
    }

    /// An error if the schema contains objects although the indexer is not installed.
    async fn check_schema_is_empty(&self) -> anyhow::Result<()> {
        const OBJECTS: &str = "\
-- migrate.objects_in_schema
select string_agg(name, ', ')
  from (select relname::text as name from pg_class where relnamespace = to_regnamespace('status_indexer')
        union
        select proname::text from pg_proc where pronamespace = to_regnamespace('status_indexer')
        order by 1
        limit 5) objects";
        if installed::history_exists(&self.client).await? {
            return Ok(());
        }
        let objects: Option<String> = query_one(&self.client, OBJECTS, &[]).await?.get(0);
        if let Some(objects) = objects {
            bail!(
                "the schema status_indexer contains objects that the indexer did not create \
                 ({objects}): rename that schema or drop it first"
            );
        }
        Ok(())
    }

    async fn trigger_name_is_taken(&self, table: &str, name: &str) -> anyhow::Result<bool> {
        const TAKEN: &str = "\
-- migrate.trigger_name_is_taken
select count(*) > 0
  from pg_trigger t
  join pg_proc p on p.oid = t.tgfoid
 where t.tgrelid = to_regclass($1)
   and t.tgname = $2
   and p.pronamespace is distinct from to_regnamespace('status_indexer')::oid";
        let params = [(&table as _, Type::TEXT), (&name as _, Type::TEXT)];
        Ok(query_one(&self.client, TAKEN, &params).await?.get(0))
    }

    /// The statements that drop the indexer's triggers on a table, whatever their names are.
    pub(super) async fn drop_triggers(&self, table: &str) -> anyhow::Result<String> {
        const TRIGGERS: &str = "\
-- migrate.our_triggers
select t.tgname::text
  from pg_trigger t
  join pg_proc p on p.oid = t.tgfoid
 where t.tgrelid = to_regclass($1)
   and p.pronamespace = to_regnamespace('status_indexer')::oid
 order by 1";
        let rows = query(&self.client, TRIGGERS, &[(&table, Type::TEXT)]).await?;
        let drops = rows.iter().map(|row| {
            let name = quote_ident(row.get(0));
            format!("drop trigger if exists {name} on {table};\n")
        });
        Ok(drops.collect())
    }
}
