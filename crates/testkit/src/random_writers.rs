//! Many writers at once that write what clients of the metadata service write, in random order.
//!
//! Owns the tasks that write. Promises that a writer whose server dies reconnects when the server
//! is back, and that each write is an autocommitted statement of its own. Called by the tests of
//! faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, Config, Error, NoTls};

use crate::clients::is_connection_lost;
use crate::seed::Seed;
use crate::wait::within;

/// Running writers.
#[derive(Debug)]
pub struct RandomWriters {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    writers: Vec<JoinHandle<()>>,
}

impl RandomWriters {
    /// Starts the writers on the runs of the flow `F`, each with a pause between two writes.
    pub fn start(config: &Config, seed: &Seed, writers: u64, pause: Duration) -> Self {
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
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Stops all writers and returns when the last statement is done.
    ///
    /// # Panics
    /// If a writer was refused.
    pub async fn stop(self) {
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
                Err(error) if is_connection_lost(&error) => break,
                Err(error) => panic!("a writer was refused: {error:?}"),
            };
            sleep(pause).await;
        }
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
