//! Compares the functions in the database with those that this binary installs.
//!
//! A function that somebody replaced, or that an interrupted restore left out, gives wrong statuses
//! without any error. Used by `doctor`. The functions that the triggers execute have a fingerprint of
//! their own, because they matter to every scan (`status_indexer.triggers`).

use tokio_postgres::Client;

use super::query::query;
use super::render::render;
use super::steps::{Kind, STEPS};
use super::tables::Tables;
use super::view::Columns;

const CREATE: &str = "create function status_indexer.";

/// The names of the functions that are missing or have another body.
///
/// # Errors
/// If the catalog cannot be read.
pub(super) async fn differing(
    client: &Client,
    tables: &Tables,
    keeps_finish: bool,
) -> anyhow::Result<Vec<String>> {
    const FUNCTIONS: &str = "\
-- migrate.functions
select proname::text, prosrc
  from pg_proc
 where pronamespace = (select oid
                         from pg_namespace
                        where nspname = 'status_indexer')";
    let rows = query(client, FUNCTIONS, &[]).await?;
    let installed: Vec<(&str, &str)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let view = Columns::of(client, tables).await?;
    let view = view.view(tables, keeps_finish);
    // The cutoff is not part of any function.
    let values = [("cutoff_secs", "1"), ("view", &*view)];
    let mut differing = Vec::new();
    for step in STEPS.iter().filter(|step| step.kind == Kind::Transaction) {
        let sql = render(step.sql, tables, &values);
        let expected = bodies(&sql);
        let missing = expected.filter(|function| !installed.contains(function));
        differing.extend(missing.map(|(name, _)| name.to_owned()));
    }
    Ok(differing)
}

/// Each function that a migration creates: its name and its body, which is between `$$` and `$$`.
fn bodies(sql: &str) -> impl Iterator<Item = (&str, &str)> {
    sql.split(CREATE).skip(1).map(|rest| {
        let (name, rest) = rest.split_once('(').expect("a function has arguments");
        let mut parts = rest.split("$$");
        let body = parts.nth(1).expect("every function has a body");
        (name, body)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_of_the_migrations_has_a_name_and_a_body() {
        let mut count = 0;
        for step in STEPS {
            for (name, body) in bodies(step.sql) {
                assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
                assert!(!body.trim().is_empty() && !body.contains(CREATE), "{name}");
                count += 1;
            }
        }
        assert!(count > 40, "{count}");
    }
}
