//! Finds the publications that would replicate the new column or the indexer's own tables.
//!
//! A subscriber whose table lacks a published column stops at the first change, and the publisher
//! keeps the WAL for it. The same happens for a published table that the subscriber lacks. So `up`
//! stops before it adds anything, unless the operator has prepared the subscribers.

use anyhow::bail;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::migrator::Migrator;
use super::query::query;
use super::tables::Tables;

/// A publication that contains the runs table with all of its columns.
pub(super) struct Publication {
    pub(super) name: String,
    /// `for all tables`: it also contains the indexer's own tables.
    all_tables: bool,
}

impl Migrator<'_> {
    /// An error if subscribers of this database need the column first.
    pub(super) async fn check_publications(&self) -> anyhow::Result<()> {
        let publications = publications(&self.client, &self.tables).await?;
        if publications.is_empty() {
            return Ok(());
        }
        let runs = self.tables.runs.quoted();
        let all: Vec<&str> = publications.iter().map(|p| p.name.as_str()).collect();
        let mut message = format!(
            "{runs} is published ({}): a subscriber without the columns run_status and run_finished_at \
             stops, and this server then keeps its WAL. On each subscriber first run `alter table {runs} \
             add column run_status text not null default 'completed', add column run_finished_at bigint; \
             alter table {runs} alter column run_status set default 'running';`",
            all.join(", ")
        );
        let whole: Vec<&str> = publications
            .iter()
            .filter(|p| p.all_tables)
            .map(|p| p.name.as_str())
            .collect();
        if !whole.is_empty() {
            message.push_str(&format!(
                ". The subscribers of {} also receive the tables of the schema status_indexer and \
                 stop if these do not exist: run `status-indexer migrate up` on those subscribers \
                 instead, or publish the tables by name",
                whole.join(", ")
            ));
        }
        bail!("{message}. Then run `status-indexer migrate up --allow-publications`")
    }
}

/// The publications that contain all columns of the runs table, also those that are added to it. One that
/// lists its columns does not.
pub(super) async fn publications(
    client: &Client,
    tables: &Tables,
) -> anyhow::Result<Vec<Publication>> {
    // `to_jsonb`, because `prattrs` exists since PostgreSQL 15.
    const PUBLICATIONS: &str = "\
-- migrate.publications
select p.pubname::text, p.puballtables
  from pg_publication p
  join pg_publication_tables t on t.pubname = p.pubname
 where t.schemaname = $1
   and t.tablename = $2
   and not exists (select
                     from pg_publication_rel r
                    where r.prpubid = p.oid
                      and r.prrelid = to_regclass($3)
                      and to_jsonb(r) ->> 'prattrs' is not null)
 order by 1";
    let runs = &tables.runs;
    let quoted = runs.quoted();
    let params = [
        (&runs.schema as _, Type::TEXT),
        (&runs.name as _, Type::TEXT),
        (&quoted as _, Type::TEXT),
    ];
    let rows = query(client, PUBLICATIONS, &params).await?;
    let publications = rows.iter().map(|row| Publication {
        name: row.get(0),
        all_tables: row.get(1),
    });
    Ok(publications.collect())
}
