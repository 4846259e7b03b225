//! Notifies Metaflow's web UI of the transitions that it cannot know: upstream's own message on the
//! channel `notify`, upon which the UI loads the run and sends it to its subscribers.
//!
//! The UI learns by itself of metadata that is inserted. It does not learn that time has changed a
//! status, that a failed end step is retried, or that a heartbeat has come back. Promises to send after
//! the status is committed, in batches, and never to delay a stage: messages beyond
//! [`MAX_WAITING`] are dropped and counted, and none is sent while the server's notification queue is
//! more than half full, because a full one makes commits fail. Off unless `--notify-ui` is given.

use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use super::health::Health;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::pg::SHORT;
use crate::status::{Reason, RunKey};
use crate::store::{Change, Store};

/// Messages that may wait; more are dropped.
const MAX_WAITING: usize = 10_000;

/// Messages of one statement.
const MAX_BATCH: usize = 200;

/// The wait before the next attempt while the server's notification queue is half full.
const FULL_WAIT: Duration = Duration::from_secs(1);

/// `$1` and `$2`: the runs. The names are those of upstream's trigger functions: of the relation and its
/// schema. Returns no row while the notification queue is more than half full.
const SEND: &str = "\
-- ui_notifier.send
select count(pg_notify('notify', json_build_object(
         'table', c.relname,
         'schema', c.relnamespace::regnamespace::text,
         'operation', 'UPDATE',
         'data', json_build_object('flow_id', k.flow_id, 'run_number', k.run_number))::text))
  from status_indexer.state s
  join pg_class c on c.oid = to_regclass(s.runs_table)
 cross join unnest($1, $2) k (flow_id, run_number)
 where pg_notification_queue_usage() <= 0.5
having count(*) > 0";

/// Takes the changes of the stages; does nothing if no UI is to be notified.
#[derive(Debug, Clone, Default)]
pub(crate) struct UiNotices(Option<(Sender<RunKey>, Metrics)>);

impl UiNotices {
    /// Takes those of the changes that the UI cannot know. Never waits.
    pub(crate) fn add(&self, changes: &[Change]) {
        let Some((queue, metrics)) = &self.0 else {
            return;
        };
        for change in changes {
            let unknown = matches!(
                change.reason,
                Reason::HeartbeatLost | Reason::NoHeartbeat | Reason::Retrying | Reason::Heartbeat
            );
            if unknown && change.from != change.to && queue.try_send(change.key.clone()).is_err() {
                count(metrics, "dropped", 1);
            }
        }
    }
}

fn count(metrics: &Metrics, outcome: &str, messages: usize) {
    metrics
        .ui_notifications_total
        .with_label_values(&[outcome])
        .inc_by(messages as u64);
}

/// See the module.
#[derive(Debug)]
pub(crate) struct UiNotifier {
    store: Store,
    queue: Receiver<RunKey>,
    health: Health,
    metrics: Metrics,
}

impl UiNotifier {
    /// A stage, and the handle by which the other stages give it their changes.
    pub(crate) fn new(store: Store, health: Health, metrics: Metrics) -> (Self, UiNotices) {
        let (sender, queue) = channel(MAX_WAITING);
        let notices = UiNotices(Some((sender, metrics.clone())));
        let notifier = Self {
            store,
            queue,
            health,
            metrics,
        };
        (notifier, notices)
    }

    /// Runs until `stop`. A batch that cannot be sent is dropped: it would be outdated when the database
    /// answers again, and the UI shows the present statuses when it is loaded.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut stage = self.health.stage(
            "ui_notifier",
            Duration::from_millis(50),
            Duration::from_secs(3),
        );
        let mut batch = Vec::new();
        loop {
            batch.clear();
            let received = self.queue.recv_many(&mut batch, MAX_BATCH);
            match stop.run_until_cancelled(received).await {
                None | Some(0) => return,
                Some(_) => {}
            }
            let wait = match self.send(&batch).await {
                Ok(true) => {
                    stage.succeeded();
                    count(&self.metrics, "sent", batch.len());
                    continue;
                }
                Ok(false) => FULL_WAIT,
                Err(Error::Stopping) => return,
                Err(error) => stage.failed(&error, "cannot notify the web UI"),
            };
            count(&self.metrics, "dropped", batch.len());
            stop.run_until_cancelled(tokio::time::sleep(wait)).await;
        }
    }

    /// False if the server's notification queue is more than half full.
    async fn send(&self, batch: &[RunKey]) -> Result<bool, Error> {
        let flow_ids: Vec<&str> = batch.iter().map(|key| key.flow_id.as_str()).collect();
        let run_numbers: Vec<i64> = batch.iter().map(|key| key.run_number).collect();
        let params = [
            (&flow_ids as _, Type::TEXT_ARRAY),
            (&run_numbers as _, Type::INT8_ARRAY),
        ];
        let rows = self.store.db().query(SEND, &params, SHORT).await?;
        Ok(!rows.is_empty())
    }
}
