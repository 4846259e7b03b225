-- migrate: concurrently status_indexer_ui_status
-- For the web UI: the runs of one status in all flows, newest first.
create index concurrently status_indexer_ui_status
  on {{runs}} (run_status, ts_epoch desc, run_number desc);
