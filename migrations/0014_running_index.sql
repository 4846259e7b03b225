-- migrate: concurrently status_indexer_running
-- What the sweeper reads. It does not mention last_heartbeat_ts, because that would make every
-- heartbeat a non-HOT update.
create index concurrently status_indexer_running
  on {{runs}} (flow_id, run_number)
  where run_status = 'running';
