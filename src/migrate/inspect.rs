//! What `doctor` reads of an installation, over one connection and without changing anything.
//!
//! Owns no condition: each method asks the file that `up`, `down` or `status` ask.

use anyhow::Context as _;
use tokio_postgres::Client;

use super::installed::{self, Applied};
use super::owner::{OBJECTS_OWNER_REPAIR, Owners};
use super::query::query_one;
use super::status::{self, Part};
use super::steps::{self, Kind, STEPS};
use super::tables::{TableNames, Tables, upstream_notify_triggers};
use super::view::Columns;
use super::{dumps, functions, grants, migrator, publications};

/// What was found to be wrong, and what to do about it.
pub(crate) type Fault = (String, String);

/// An installation, or the tables without one.
#[derive(Debug)]
pub(crate) struct Inspection<'a> {
    client: &'a Client,
    tables: &'a Tables,
}

/// Whether a server of this major version is supported: a warning where it is newer than those tested.
///
/// # Errors
/// If it is too old.
pub(crate) fn server_support(major: i32) -> anyhow::Result<Option<String>> {
    migrator::untested(major)
}

/// Whether anything is installed.
pub(crate) async fn is_installed(client: &Client) -> anyhow::Result<bool> {
    installed::history_exists(client).await
}

/// The recorded steps against those of this binary.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    /// How many are applied.
    pub(crate) applied: usize,
    /// The names of those that are missing.
    pub(crate) pending: Vec<&'static str>,
    /// What a newer binary has applied.
    pub(crate) newer: Option<String>,
}

impl<'a> Inspection<'a> {
    pub(crate) fn new(client: &'a Client, tables: &'a Tables) -> Self {
        Self { client, tables }
    }

    /// Looks up the tables. The caller has begun a transaction.
    pub(crate) async fn find_tables(client: &Client, names: &TableNames) -> anyhow::Result<Tables> {
        Tables::find(client, names).await
    }

    /// Checks that the tables have what the indexer reads.
    pub(crate) async fn check_upstream(&self) -> anyhow::Result<()> {
        self.tables.check_upstream(self.client).await
    }

    /// The tables for which the indexer is installed, if those are not the ones that were found.
    pub(crate) async fn other_tables(&self) -> anyhow::Result<Option<String>> {
        const TABLES: &str = "\
-- migrate.tables_of_state
select runs_table, metadata_table
  from status_indexer.state";
        let row = query_one(self.client, TABLES, &[]).await?;
        let installed: (String, String) = (row.get(0), row.get(1));
        let found = (self.tables.runs.quoted(), self.tables.metadata.quoted());
        Ok((installed != found).then(|| format!("{} and {}", installed.0, installed.1)))
    }

    pub(crate) async fn steps(&self) -> anyhow::Result<Steps> {
        let history = installed::history(self.client).await?;
        let ui = is_for_ui(&history);
        let is_applied = |version| history.iter().any(|step| step.version == version);
        let wanted = STEPS.iter().filter(|step| ui || step.kind != Kind::UiIndex);
        let (applied, pending): (Vec<_>, Vec<_>) =
            wanted.partition(|step| is_applied(step.version));
        Ok(Steps {
            applied: applied.len(),
            pending: pending.iter().map(|step| step.name).collect(),
            newer: installed::newer_step(&history).map(|newer| newer.finding()),
        })
    }

    /// The owner of both tables, or what is wrong with it.
    pub(crate) async fn owner(&self) -> anyhow::Result<Result<String, Fault>> {
        let owners = Owners::of(self.client, self.tables).await?;
        if let Some(difference) = owners.difference(self.tables) {
            return Ok(Err(difference));
        }
        let foreign = super::owner::foreign_objects(self.client, &owners.of_runs).await?;
        Ok(match foreign {
            Some(foreign) => Err((foreign, OBJECTS_OWNER_REPAIR.to_owned())),
            None => Ok(owners.of_runs),
        })
    }

    /// What `migrate up --grant-to` would grant to the session's role.
    pub(crate) async fn missing_privileges(&self) -> anyhow::Result<Vec<String>> {
        grants::missing(self.client, self.tables).await
    }

    /// The roles that could dump the database if the indexer were not installed.
    pub(crate) async fn roles_without_dump(&self) -> anyhow::Result<Vec<String>> {
        dumps::without_dump(self.client).await
    }

    /// The triggers that are not as they must be, and the number of the others.
    pub(crate) async fn triggers(&self) -> anyhow::Result<(usize, Vec<Fault>)> {
        Ok(faults(status::triggers(self.client).await?))
    }

    /// The same of the indexes.
    pub(crate) async fn indexes(&self) -> anyhow::Result<(usize, Vec<Fault>)> {
        let history = installed::history(self.client).await?;
        let parts = status::indexes(self.client, self.tables, is_for_ui(&history)).await?;
        Ok(faults(parts))
    }

    /// The functions that differ from those of this binary.
    pub(crate) async fn differing_functions(&self) -> anyhow::Result<Vec<String>> {
        functions::differing(self.client, self.tables, self.keeps_finish().await?).await
    }

    /// Whether the view has the columns that the runs table has now.
    pub(crate) async fn view_is_current(&self) -> anyhow::Result<bool> {
        let columns = Columns::of(self.client, self.tables).await?;
        columns
            .are_in_view(self.client, self.keeps_finish().await?)
            .await
    }

    /// The names of the publications that contain the indexer's columns.
    pub(crate) async fn publications(&self) -> anyhow::Result<Vec<String>> {
        let found = publications::publications(self.client, self.tables).await?;
        Ok(found.into_iter().map(|found| found.name).collect())
    }

    /// Whether upstream's triggers notify of each status.
    pub(crate) async fn upstream_notifies(&self) -> anyhow::Result<bool> {
        upstream_notify_triggers(self.client, &self.tables.runs.quoted()).await
    }

    async fn keeps_finish(&self) -> anyhow::Result<bool> {
        super::up::keeps_finish(self.client)
            .await
            .context("cannot read the state")
    }
}

/// Whether the indexes of the web UI belong to the installation.
fn is_for_ui(history: &[Applied]) -> bool {
    history.iter().any(|step| steps::is_of_ui(step.version))
}

/// Splits parts into the number of those that are as they must be, and the others.
fn faults(parts: Vec<Part>) -> (usize, Vec<Fault>) {
    let all = parts.len();
    let faults: Vec<Fault> = parts
        .into_iter()
        .filter_map(|part| {
            let repair = part.repair?;
            Some((format!("{} is {}", part.name, part.state), repair))
        })
        .collect();
    (all - faults.len(), faults)
}
