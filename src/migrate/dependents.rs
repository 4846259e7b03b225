//! Finds objects of others that `down` would have to drop too, before it removes anything.

use anyhow::ensure;
use tokio_postgres::types::Type;

use super::migrator::Migrator;
use super::query::query_one;
use super::steps;

/// Objects of the schema are the indexer's by their names; what belongs to such an object (a
/// row type, an index, a default) depends on it and is in the schema or has no schema.
const DEPENDENTS: &str = "\
-- migrate.dependents
with names as (
  select to_regclass(name)::oid as oid from unnest($2::text[]) name
  union all
  select to_regprocedure(name)::oid from unnest($3::text[]) name
), inside as (
  select 'pg_class'::regclass as classid, oid as objid
    from pg_class
   where relnamespace = to_regnamespace('status_indexer')
  union all
  select 'pg_proc'::regclass, oid
    from pg_proc
   where pronamespace = to_regnamespace('status_indexer')
  union all
  select 'pg_type'::regclass, oid
    from pg_type
   where typnamespace = to_regnamespace('status_indexer')
), foreign_objects as (
  select 'pg_class'::regclass as classid, oid as objid, 0 as objsubid
    from pg_class
   where relnamespace = to_regnamespace('status_indexer')
     and relkind in ('r', 'p', 'v', 'm', 'f')
     and oid not in (select oid from names where oid is not null)
  union all
  select 'pg_proc'::regclass, oid, 0
    from pg_proc
   where pronamespace = to_regnamespace('status_indexer')
     and oid not in (select oid from names where oid is not null)
  union all
  -- A view depends through its rule.
  select case when w.oid is null then d.classid else 'pg_class'::regclass end,
         coalesce(w.ev_class, d.objid),
         d.objsubid
    from pg_depend d
    left join pg_rewrite w on d.classid = 'pg_rewrite'::regclass and w.oid = d.objid
    left join pg_attrdef f on d.classid = 'pg_attrdef'::regclass and f.oid = d.objid
    left join pg_constraint c on d.classid = 'pg_constraint'::regclass and c.oid = d.objid
    left join pg_trigger t on d.classid = 'pg_trigger'::regclass and t.oid = d.objid
    left join pg_class i on d.classid = 'pg_class'::regclass and i.oid = d.objid
   where d.deptype in ('n', 'a')
     and ((d.refclassid, d.refobjid) in (select classid, objid from inside)
          or (d.refclassid = 'pg_class'::regclass
              and d.refobjid = to_regclass($1)
              and d.refobjsubid in (select attnum
                                     from pg_attribute
                                    where attrelid = to_regclass($1)
                                      and attname in ('run_status', 'run_finished_at')
                                      and not attisdropped)))
     and (d.classid, d.objid) not in (select classid, objid from inside)
     and coalesce(w.ev_class, f.adrelid, nullif(c.conrelid, to_regclass($1)), 0)
           not in (select objid from inside)
     and not coalesce(f.adrelid = to_regclass($1), false)
     -- Since PostgreSQL 18 `not null` is a constraint too.
     and not coalesce(c.conrelid = to_regclass($1)
                      and (c.conname = 'status_indexer_run_status' or c.contype = 'n'), false)
     and not coalesce(t.tgrelid in (to_regclass($1), to_regclass($4)), false)
     and not coalesce(i.oid = any (array(select to_regclass(name)::oid from unnest($5::text[]) name)), false)
)
select string_agg(distinct pg_describe_object(classid, objid, objsubid), ', ')
  from foreign_objects";

impl Migrator<'_> {
    /// An error if another object depends on one that `down` removes, or was created in the schema.
    /// The message names these objects.
    pub(super) async fn check_dependents(&self) -> anyhow::Result<()> {
        let (runs, metadata) = (self.tables.runs.quoted(), self.tables.metadata.quoted());
        let (relations, functions) = steps::objects();
        let mut indexes = Vec::new();
        for step in steps::indexes() {
            indexes.push(super::index::qualified_name(&self.tables, step));
        }
        let params = [
            (&runs as _, Type::TEXT),
            (&relations as _, Type::TEXT_ARRAY),
            (&functions as _, Type::TEXT_ARRAY),
            (&metadata as _, Type::TEXT),
            (&indexes as _, Type::TEXT_ARRAY),
        ];
        let dependents: Option<String> = query_one(&self.client, DEPENDENTS, &params).await?.get(0);
        ensure!(
            dependents.is_none(),
            "other objects depend on the indexer's, and nothing was removed: drop {} first",
            dependents.unwrap_or_default()
        );
        Ok(())
    }
}
