-- Dropping the column drops its check.
alter table {{runs}} drop column if exists run_status;
