-- migrate: concurrently status_indexer_failed
-- A page of failed runs is one ordered range of this index.
create index concurrently status_indexer_failed
  on {{runs}} (flow_id, ts_epoch desc, run_number desc)
  where (run_status = 'failed'::text);
