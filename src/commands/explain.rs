//! `explain`: why one run has its status, as text or JSON.

use tokio_util::sync::CancellationToken;

use super::ConnectionArgs;
use crate::exit::{Exit, Failure};
use crate::output::print;
use crate::pg::SessionProfile;
use crate::status::Reason;
use crate::store::{Explanation, explain as read};

/// `explain`
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// Name of the flow
    flow: String,
    /// Number of the run, or its run_id
    run: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Explains one run.
///
/// # Errors
/// If the run does not exist, or the database cannot be read.
pub async fn explain(args: ExplainArgs, stop: &CancellationToken) -> Result<Exit, Failure> {
    let connector = args.connection.connector()?;
    let reading = async {
        let client = connector
            .connect(SessionProfile::ReadOnlyTransaction)
            .await?;
        read(&client, &args.flow, &args.run).await
    };
    let Some(answer) = stop.run_until_cancelled(reading).await else {
        return Err(Failure::Unknown(anyhow::anyhow!("stopped")));
    };
    let Some(explanation) = answer.map_err(|error| Failure::Unknown(error.into()))? else {
        return Err(Failure::Unknown(anyhow::anyhow!(
            "flow {} has no run {}",
            args.flow,
            args.run
        )));
    };
    args.connection.check_cutoff(explanation.cutoff_secs);
    if args.json {
        let text = serde_json::to_string_pretty(&explanation).map_err(anyhow::Error::from)?;
        print(&text)?;
    } else {
        print(&explanation.to_text())?;
    }
    let drift = !explanation.agrees && explanation.valid && !explanation.queued;
    Ok(if drift { Exit::Failure } else { Exit::Success })
}

impl Explanation {
    /// The explanation as text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut lines = vec![
            format!(
                "run       {}/{}{}",
                self.flow_id,
                self.run_number,
                self.own_id()
            ),
            format!("status    {} ({})", self.status, self.reason),
            format!("because   {}", self.because()),
            format!("stored    {}", self.stored_text()),
            format!("changes   {}", self.next_text()),
            format!(
                "cutoff    {} s, database clock {:.3}",
                self.cutoff_secs, self.at_secs
            ),
            "evidence".to_owned(),
        ];
        match self.evidence.last_heartbeat_ts {
            Some(heartbeat) => lines.push(format!(
                "  heartbeat   {heartbeat}  ({} s ago)",
                round(self.at_secs - heartbeat_secs(heartbeat))
            )),
            None => lines.push("  heartbeat   none".to_owned()),
        }
        if self.evidence.rows.is_empty() {
            lines.push("  end step    no attempt, no attempt_ok".to_owned());
        }
        for row in &self.evidence.rows {
            lines.push(format!(
                "  {:<11} {}  {}  (task {}, id {})",
                row.field_name,
                row.ts_epoch,
                row.value.as_deref().unwrap_or("null"),
                row.task_id,
                row.id
            ));
        }
        lines.join("\n")
    }

    fn own_id(&self) -> String {
        self.run_id
            .as_ref()
            .map_or_else(String::new, |id| format!("  (run_id {id})"))
    }

    fn because(&self) -> String {
        let rule = match self.reason {
            Reason::Retrying => "the end step failed, and a newer attempt of it has started",
            Reason::EndSucceeded => "the end step's newest attempt_ok is true",
            Reason::EndFailed => "the end step's newest attempt_ok is false",
            Reason::Heartbeat => {
                "no end step has finished, and the last heartbeat is within the cutoff"
            }
            Reason::HeartbeatLost => {
                "no end step has finished, and the last heartbeat is further from the clock than the cutoff"
            }
            Reason::NoHeartbeat => "no end step has finished, and the run never sent a heartbeat",
        };
        if self.evidence.attempt_ok_is_boolean {
            rule.to_owned()
        } else {
            format!("{rule}; the newest attempt_ok is not a valid boolean and counts as missing")
        }
    }

    fn stored_text(&self) -> String {
        let comparison = match (self.agrees, self.valid, self.queued) {
            (true, true, _) => "agrees",
            (true, false, _) => "agrees; the column is not valid yet, its backfill is not complete",
            (false, _, true) => "differs; an event is pending",
            (false, false, false) => "differs; the backfill is not complete",
            (false, true, false) => "DRIFT: differs, and no pending event explains it",
        };
        format!("{} ({comparison})", self.stored)
    }

    fn next_text(&self) -> String {
        match (self.next_change_secs, self.next_status) {
            (Some(at), Some(status)) => format!(
                "to {status} at {at:.0}, in {} s, unless a heartbeat or evidence arrives",
                round(at - self.at_secs)
            ),
            _ => "not by time alone".to_owned(),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown to the second")]
fn heartbeat_secs(heartbeat: i64) -> f64 {
    heartbeat as f64
}

fn round(secs: f64) -> String {
    format!("{secs:.1}")
}
