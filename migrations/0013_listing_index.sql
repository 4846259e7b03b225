-- migrate: concurrently status_indexer_listing
-- A page of runs with one status is one ordered range of this index.
create index concurrently status_indexer_listing
  on {{runs}} (flow_id, run_status, ts_epoch desc, run_number desc);
