//! `migrate status`: lists the installed parts, the state of each, and the command that repairs it.

use std::fmt::{self, Display};

use tokio_postgres::{Client, Row};

use super::index;
use super::installed::{Applied, history};
use super::query::{query, query_one};
use super::steps::{self, Kind, STEPS};
use super::tables::{TableNames, Tables};
use crate::pg::{Connector, SessionProfile};

/// A report for operators, and whether everything is installed and works.
///
/// # Errors
/// If the database cannot be read.
pub async fn status(connector: &Connector, names: &TableNames) -> anyhow::Result<(String, bool)> {
    let client = connector
        .connect(SessionProfile::ReadOnlyTransaction)
        .await?;
    let tables = Tables::find(&client, names).await?;
    let mut report = Report::default();
    report.line(
        "tables",
        format!("{}, {}", tables.runs.quoted(), tables.metadata.quoted()),
    );
    let history = history(&client).await?;
    let ui = history
        .iter()
        .any(|applied| steps::is_of_ui(applied.version));
    let all_applied = report.steps(&history, ui);
    if history.is_empty() {
        report.hint("not installed: run `status-indexer migrate up`");
        return Ok((report.text, false));
    }
    // The function that lists the triggers may not exist before all steps are applied.
    let mut complete = all_applied && report.triggers(&client).await?;
    complete &= report.indexes(&client, &tables, ui).await?;
    if complete {
        report.validity(&client).await?;
    }
    if !all_applied {
        report.hint("steps are pending: run `status-indexer migrate up`");
    }
    Ok((report.text, complete))
}

/// The text of the report. A method that checks a part returns whether the part is complete.
#[derive(Default)]
struct Report {
    text: String,
}

impl Report {
    fn line(&mut self, label: &str, value: impl Display) {
        self.text.push_str(&format!("{label:<12}{value}\n"));
    }

    fn hint(&mut self, hint: &str) {
        self.text.push_str(hint);
        self.text.push('\n');
    }

    fn steps(&mut self, history: &[Applied], ui: bool) -> bool {
        let mut complete = true;
        for step in STEPS {
            let applied = history
                .iter()
                .find(|applied| applied.version == step.version);
            let optional = step.kind == Kind::UiIndex && !ui;
            complete &= applied.is_some() || optional;
            let state = match applied {
                Some(applied) => format!("applied {}", applied.at),
                None if optional => "optional: `migrate up --ui`".to_owned(),
                None => "pending".to_owned(),
            };
            self.text.push_str(&format!("{:<28}{state}\n", step.name));
        }
        complete
    }

    async fn triggers(&mut self, client: &Client) -> anyhow::Result<bool> {
        let mut complete = true;
        for part in triggers(client).await? {
            complete &= part.repair.is_none();
            self.line("trigger", part);
        }
        Ok(complete)
    }

    async fn indexes(
        &mut self,
        client: &Client,
        tables: &Tables,
        ui: bool,
    ) -> anyhow::Result<bool> {
        let mut complete = true;
        for part in indexes(client, tables, ui).await? {
            complete &= part.repair.is_none();
            self.line("index", part);
        }
        Ok(complete)
    }

    /// The cutoff, and whether the column is valid.
    async fn validity(&mut self, client: &Client) -> anyhow::Result<()> {
        const STATE: &str = "\
-- migrate.state
select cutoff_secs, status_indexer.is_valid(), scan_compared, scan_corrected
  from status_indexer.state";
        let row = query_one(client, STATE, &[]).await?;
        let (cutoff_secs, valid): (i64, bool) = (row.get(0), row.get(1));
        let (compared, corrected): (i64, i64) = (row.get(2), row.get(3));
        self.line("cutoff", format!("{cutoff_secs} s"));
        if valid {
            self.line("valid", "yes");
        } else {
            self.line(
                "valid",
                format!(
                    "no: the backfill has compared {compared} runs and corrected {corrected}; it \
                     continues while `status-indexer run` is running"
                ),
            );
        }
        Ok(())
    }
}

/// A trigger or an index, and its state.
pub(super) struct Part {
    pub(super) name: String,
    pub(super) state: String,
    /// What to do; none if it is as it must be.
    pub(super) repair: Option<String>,
}

impl Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.state)?;
        match &self.repair {
            Some(repair) => write!(f, ": {repair}"),
            None => Ok(()),
        }
    }
}

/// Every trigger that the indexer creates.
pub(super) async fn triggers(client: &Client) -> anyhow::Result<Vec<Part>> {
    const TRIGGERS: &str = "\
-- migrate.triggers
select coalesce(to_regclass(table_name)::text, table_name), trigger_name, state
  from status_indexer.triggers()";
    let rows = query(client, TRIGGERS, &[]).await?;
    let part = |row: &Row| {
        let (table, name, state): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
        let name_taken = "the name belongs to a trigger that the indexer did not create";
        let (state, repair) = match state {
            "name taken" => (
                name_taken,
                Some("rename or drop that one, then run `status-indexer migrate up`".to_owned()),
            ),
            state => {
                let repair = trigger_repair(table, name, state);
                (state, repair.map(|command| format!("run `{command}`")))
            }
        };
        Part {
            name: format!("{name} on {table}"),
            state: state.to_owned(),
            repair,
        }
    };
    Ok(rows.iter().map(part).collect())
}

/// Every index that the indexer creates; those of the web UI with `ui` only.
pub(super) async fn indexes(
    client: &Client,
    tables: &Tables,
    ui: bool,
) -> anyhow::Result<Vec<Part>> {
    let mut parts = Vec::new();
    for step in steps::indexes().filter(|step| ui || step.kind == Kind::Index) {
        let state = match index::validity(client, tables, step).await? {
            Some(true) => "valid",
            Some(false) => "invalid",
            None => "missing",
        };
        parts.push(Part {
            name: step.index().to_owned(),
            state: state.to_owned(),
            repair: (state != "valid").then(|| "run `status-indexer migrate up`".to_owned()),
        });
    }
    Ok(parts)
}

/// The command that repairs a trigger, by its state in `status_indexer.triggers()`; none if the
/// trigger is enabled. Evidence written while a trigger was disabled is only found by a new
/// backfill.
fn trigger_repair(table: &str, name: &str, state: &str) -> Option<String> {
    match state {
        "enabled" => None,
        "disabled" => Some(format!(
            "alter table {table} enable trigger {name}; select status_indexer.invalidate();"
        )),
        "missing" | "replaced" | "name taken" => Some("status-indexer migrate up".to_owned()),
        _ => Some("status-indexer migrate down && status-indexer migrate up".to_owned()),
    }
}
