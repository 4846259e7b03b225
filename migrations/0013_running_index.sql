-- migrate: concurrently status_indexer_running
-- A page of running runs is one ordered range of this index, and the sweeper reads it. Each run is in
-- the index of its status only. No index contains last_heartbeat_ts, because then no heartbeat could be
-- a HOT update.
create index concurrently status_indexer_running
  on {{runs}} (flow_id, ts_epoch desc, run_number desc)
  where (run_status = 'running'::text);
