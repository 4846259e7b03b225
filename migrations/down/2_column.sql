-- The view reads the column; the check goes with it.
drop view if exists status_indexer.run_status;
alter table {{runs}} drop column if exists run_status;
