-- migrate: concurrently status_indexer_ui_status
-- For the web UI: the runs of one status in all flows, newest first.
-- With the collation, which only the UI's statements name, the planner does not combine it with others.
create index concurrently status_indexer_ui_status
  on {{runs}} (run_status collate "C", ts_epoch desc, run_number desc);
