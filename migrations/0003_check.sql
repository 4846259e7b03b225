-- Not valid at first: it applies to new rows at once, and scans nothing under an exclusive lock.
alter table {{runs}}
  add constraint status_indexer_run_status
  check (run_status in ('running', 'completed', 'failed')) not valid;
