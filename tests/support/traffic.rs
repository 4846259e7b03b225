//! Many writers at once, who write what clients of the metadata service write, in any order.
//!
//! Owns the tasks that write. Promises that a writer whose server dies comes back when the server
//! does, and that what it wrote, it wrote as an autocommitted statement of its own.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, Config, Error, NoTls};

use super::verdict::Seed;
use super::wait::within;

/// Writers at work.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    writers: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Starts so many writers on the runs of one flow, a pause apart between two writes.
    pub(crate) fn start(config: &Config, seed: &Seed, writers: u64, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicU64::new(0));
        let writers = (0..writers)
            .map(|number| {
                let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
                let (config, random) = (config.clone(), seed.generator(1000 + number));
                tokio::spawn(write(config, random, stop, written, pause))
            })
            .collect();
        Self {
            stop,
            written,
            writers,
        }
    }

    /// How many statements have succeeded.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Ends all writers and returns when the last statement is done.
    pub(crate) async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            within(Duration::from_secs(30), "a writer ends", writer)
                .await
                .expect("writers do not panic");
        }
    }
}

async fn write(
    config: Config,
    mut random: StdRng,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    pause: Duration,
) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(Ok((client, connection))) =
            timeout(Duration::from_secs(5), config.connect(NoTls)).await
        else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        tokio::spawn(async { drop(connection.await) });
        while !stop.load(Ordering::Relaxed) {
            match step(&client, &mut random).await {
                Ok(()) => written.fetch_add(1, Ordering::Relaxed),
                Err(error) if is_loss(&error) => break,
                Err(error) => panic!("a writer was refused: {error:?}"),
            };
            sleep(pause).await;
        }
    }
}

/// Whether the server went away; one on its way down says so before it closes.
fn is_loss(error: &Error) -> bool {
    match error.code() {
        Some(code) => code.code().starts_with("57"),
        None => error.is_closed() || error.source().is_some_and(|cause| cause.is::<io::Error>()),
    }
}

/// One statement, on a random run of the flow `F`.
async fn step(client: &Client, random: &mut StdRng) -> Result<(), Error> {
    const INSERT_RUN: &str = "\
insert into runs_v3 (flow_id, user_name, ts_epoch, tags, system_tags, last_heartbeat_ts)
select 'F', 'tester', (extract(epoch from clock_timestamp()) * 1000)::bigint, '[]', '[]',
       case when $1::float8 < 0.7 then extract(epoch from clock_timestamp())::bigint
            when $1 < 0.8 then extract(epoch from clock_timestamp())::bigint - 10000
            when $1 < 0.9 then extract(epoch from clock_timestamp())::bigint + 10000 end";
    // A third of them out of order, a tenth at the very same time as others.
    const METADATA: &str = "\
insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type, ts_epoch)
select 'F', run_number, 'end', 1, $2, $3, $2,
       (extract(epoch from clock_timestamp()) * 1000)::bigint
         - case when $4::float8 < 0.3 then ($4::float8 * 10000)::bigint else 0 end
  from runs_v3
 where flow_id = 'F'
 order by abs(run_number - $1::float8 * (select last_value from runs_v3_run_number_seq))
 limit 1";
    const HEARTBEAT: &str = "\
update runs_v3
   set last_heartbeat_ts = extract(epoch from clock_timestamp())::bigint
         + case when $2::float8 < 0.1 then -10000 when $2 < 0.2 then 10000 else 0 end
 where flow_id = 'F'
   and run_number = (select run_number
                       from runs_v3
                      where flow_id = 'F'
                      order by abs(run_number - $1::float8 * (select last_value from runs_v3_run_number_seq))
                      limit 1)";
    const DELETE: &str = "\
delete from metadata_v3
 where id = (select id
               from metadata_v3
              where flow_id = 'F'
              order by abs(id - $1::float8 * (select last_value from metadata_v3_id_seq))
              limit 1)";
    const MOVE: &str = "\
update metadata_v3
   set run_number = (select run_number
                       from runs_v3
                      where flow_id = 'F'
                      order by abs(run_number - $2::float8 * (select last_value from runs_v3_run_number_seq))
                      limit 1)
 where id = (select id
               from metadata_v3
              where flow_id = 'F'
              order by abs(id - $1::float8 * (select last_value from metadata_v3_id_seq))
              limit 1)";
    let (one, two): (f64, f64) = (random.random(), random.random());
    match random.random_range(0..100) {
        0..15 => client.execute(INSERT_RUN, &[&one]).await,
        15..35 => {
            client
                .execute(METADATA, &[&one, &"attempt", &"0", &two])
                .await
        }
        35..65 => {
            let value = ["True", "False", "true", "rubbish"][random.random_range(0..4)];
            client
                .execute(METADATA, &[&one, &"attempt_ok", &value, &two])
                .await
        }
        65..90 => client.execute(HEARTBEAT, &[&one, &two]).await,
        90..95 => client.execute(DELETE, &[&one]).await,
        _ => client.execute(MOVE, &[&one, &two]).await,
    }
    .map(drop)
}
