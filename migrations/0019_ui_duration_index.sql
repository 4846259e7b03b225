-- migrate: concurrently status_indexer_ui_duration
-- For the web UI: the runs of one status in the order of their durations.
create index concurrently status_indexer_ui_duration
  on {{runs}} (run_status, ((run_finished_at - ts_epoch)) desc);
