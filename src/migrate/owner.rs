//! The owner of the tables, which also owns the indexer's objects, whichever of its members migrates.
//!
//! Otherwise the objects would belong to the login that ran the first migration, and no other member
//! of the owning role could upgrade or remove them.

use anyhow::{Context as _, bail, ensure};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::migrator::Migrator;
use super::query::{query_bool, query_one, query_opt};
use super::tables::Tables;
use crate::pg::quote_ident;

/// The owners of both tables, and the role of the session.
#[derive(Debug)]
pub(super) struct Owners {
    pub(super) of_runs: String,
    pub(super) of_metadata: String,
    login: String,
    memberships: [bool; 2],
    superuser: bool,
}

impl Owners {
    pub(super) async fn of(client: &Client, tables: &Tables) -> anyhow::Result<Self> {
        const OWNERS: &str = "\
-- migrate.owners
select pg_get_userbyid(r.relowner)::text, pg_get_userbyid(m.relowner)::text, current_user::text,
       pg_has_role(r.relowner, 'member'), pg_has_role(m.relowner, 'member'),
       (select rolsuper from pg_roles where rolname = current_user)
  from pg_class r, pg_class m
 where r.oid = to_regclass($1)
   and m.oid = to_regclass($2)";
        let (runs, metadata) = (tables.runs.quoted(), tables.metadata.quoted());
        let names = [(&runs as _, Type::TEXT), (&metadata as _, Type::TEXT)];
        let row = query_one(client, OWNERS, &names).await?;
        Ok(Self {
            of_runs: row.get(0),
            of_metadata: row.get(1),
            login: row.get(2),
            memberships: [row.get(3), row.get(4)],
            superuser: row.get(5),
        })
    }

    /// Both owners if they differ, and what to do.
    pub(super) fn difference(&self, tables: &Tables) -> Option<(String, String)> {
        let (runs, metadata) = (tables.runs.quoted(), tables.metadata.quoted());
        let (owner, other) = (&self.of_runs, &self.of_metadata);
        (owner != other).then(|| {
            let owner_name = quote_ident(owner);
            (
                format!("{runs} belongs to {owner}, but {metadata} belongs to {other}"),
                format!(
                    "give both the same owner, for example with `alter table {metadata} owner to \
                     {owner_name}`"
                ),
            )
        })
    }
}

/// The roles of a migration.
#[derive(Debug)]
pub(super) struct Roles {
    /// The owner of both tables.
    pub(super) owner: String,
    /// The role that logged in.
    pub(super) login: String,
    /// Whether it is a superuser.
    pub(super) superuser: bool,
}

impl Roles {
    /// Checks that one role owns both tables, and that the session's role is a member of it: only an
    /// owner can alter a table.
    ///
    /// # Errors
    /// If that is not so; the message names the owners.
    pub(super) async fn check(client: &Client, tables: &Tables) -> anyhow::Result<Self> {
        let owners = Owners::of(client, tables).await?;
        let login = &owners.login;
        for (table, owner, member) in [
            (&tables.runs, &owners.of_runs, owners.memberships[0]),
            (&tables.metadata, &owners.of_metadata, owners.memberships[1]),
        ] {
            ensure!(
                member,
                "the role {login} does not own {}: migrate as {owner} or as a member of it; for a \
                 daemon that runs as another role, add --grant-to",
                table.quoted()
            );
        }
        if let Some((difference, repair)) = owners.difference(tables) {
            bail!("{difference}: {repair}");
        }
        Ok(Self {
            owner: owners.of_runs,
            login: owners.login,
            superuser: owners.superuser,
        })
    }
}

impl Migrator<'_> {
    /// Continues with the rights of the owner. A superuser that removes the objects does not need it.
    pub(super) async fn become_owner(&self) -> anyhow::Result<()> {
        let set_role = set_role(&self.roles.owner);
        self.client.batch_execute(&set_role).await.with_context(|| {
            format!(
                "the role {} cannot act as the owner of the tables: grant {} to it, or migrate \
                     as {}",
                self.roles.login, self.roles.owner, self.roles.owner
            )
        })
    }

    /// Continues with the rights of the role that logged in.
    pub(super) async fn become_login(&self) -> anyhow::Result<()> {
        Ok(self.client.batch_execute("reset role").await?)
    }

    /// The statements that create the schema for the owner, where either role may create one. The
    /// session's role is the owner before and after.
    pub(super) async fn create_schema(&self) -> anyhow::Result<String> {
        const OWNER_MAY_CREATE: &str = "\
-- migrate.owner_may_create
select has_database_privilege(current_user, current_database(), 'create')";
        let owner = quote_ident(&self.roles.owner);
        if query_bool(&self.client, OWNER_MAY_CREATE, &[]).await? {
            return Ok("create schema status_indexer;".to_owned());
        }
        Ok(format!(
            "reset role; create schema status_indexer authorization {owner}; {};",
            set_role(&self.roles.owner)
        ))
    }

    /// An error if the installed objects belong to a role other than the tables' owner, for example
    /// because the tables were given another owner later.
    pub(super) async fn check_objects_owned(&self) -> anyhow::Result<()> {
        let foreign = foreign_objects(&self.client, &self.roles.owner).await?;
        if let Some(foreign) = foreign {
            bail!("{foreign}: {OBJECTS_OWNER_REPAIR}");
        }
        Ok(())
    }
}

/// How to give the indexer's objects the owner of the tables.
pub(super) const OBJECTS_OWNER_REPAIR: &str =
    "as a superuser, run `status-indexer migrate down` and then `status-indexer migrate up`";

/// Which role owns the indexer's objects, if it is not `owner`, the owner of the tables.
pub(super) async fn foreign_objects(
    client: &Client,
    owner: &str,
) -> anyhow::Result<Option<String>> {
    const OBJECTS_OWNER: &str = "\
-- migrate.objects_owner
select pg_get_userbyid(c.relowner)::text
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where n.nspname = 'status_indexer'
   and c.relname = 'schema_history'
   and pg_get_userbyid(c.relowner) <> $1";
    let row = query_opt(client, OBJECTS_OWNER, &[(&owner, Type::TEXT)]).await?;
    Ok(row.map(|row| {
        let other: String = row.get(0);
        format!("the tables belong to {owner}, but the indexer's objects belong to {other}")
    }))
}

fn set_role(role: &str) -> String {
    format!("set role {}", quote_ident(role))
}
