-- The columns. This statement sets existing rows to `completed` without rewriting them, and the
-- default of new rows to `running`. Nine runs in ten are completed, so the backfill has the fewest
-- rows to update. `run_finished_at` (milliseconds since the epoch) stays null unless the site keeps it
-- for the web UI.
alter table {{runs}}
  add column run_status text not null default 'completed',
  add column run_finished_at bigint,
  alter column run_status set default 'running';
