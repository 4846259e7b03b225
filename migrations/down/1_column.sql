-- The view reads the column. Dropping the column drops its check.
drop view if exists status_indexer.run_status;
alter table {{runs}} drop column if exists run_status;
