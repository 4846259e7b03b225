-- migrate: concurrently status_indexer_completed
-- A page of completed runs is one ordered range of this index.
create index concurrently status_indexer_completed
  on {{runs}} (flow_id, ts_epoch desc, run_number desc)
  where (run_status = 'completed'::text);
