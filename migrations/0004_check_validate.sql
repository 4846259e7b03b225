-- Scans the table under a lock that blocks neither readers nor writers.
alter table {{runs}}
  validate constraint status_indexer_run_status;
