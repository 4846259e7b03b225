-- migrate: concurrently status_indexer_running
-- The sweeper reads this index. It does not contain last_heartbeat_ts, because then no heartbeat
-- could be a HOT update.
create index concurrently status_indexer_running
  on {{runs}} (flow_id, run_number)
  where (run_status = 'running'::text);
