-- The column. This statement sets existing rows to `completed` without rewriting them, and the
-- default of new rows to `running`. Nine runs in ten are completed, so the backfill has the fewest
-- rows to update.
alter table {{runs}}
  add column run_status text not null default 'completed',
  alter column run_status set default 'running';
