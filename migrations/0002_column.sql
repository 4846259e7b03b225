-- The column. One statement gives the rows that are there `completed`, without touching them, and
-- new ones `running`: nine runs of ten have completed, so the first pass has the fewest rows to write.
alter table {{runs}}
  add column run_status text not null default 'completed',
  alter column run_status set default 'running';
