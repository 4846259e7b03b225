-- Dropping the column drops its check, and the indexes on both columns.
alter table {{runs}} drop column if exists run_status, drop column if exists run_finished_at;
