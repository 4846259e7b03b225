-- migrate: concurrently status_indexer_ui_finished
-- For the web UI: the runs of one status in the order of their ends.
create index concurrently status_indexer_ui_finished
  on {{runs}} (run_status, run_finished_at desc);
