-- migrate: concurrently status_indexer_ui_finished
-- For the web UI: the runs of one status in the order of their ends.
-- With the collation, which only the UI's statements name, the planner does not combine it with others.
create index concurrently status_indexer_ui_finished
  on {{runs}} (run_status collate "C", run_finished_at desc);
