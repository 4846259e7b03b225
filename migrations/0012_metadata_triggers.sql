-- Of a dozen metadata rows a task writes, two of the end step's can change a status. The list is a
-- constant: `in (...)` would be put together anew for each statement.
create trigger status_indexer_insert
  after insert on {{metadata}}
  for each row
  when (new.step_name = 'end' and new.field_name = any ('{attempt,attempt_ok}'))
  execute function status_indexer.enqueue_row();

-- Statement triggers: rows are hardly ever updated or deleted, and then many at once.
create trigger status_indexer_update
  after update on {{metadata}}
  referencing old table as old_rows new table as new_rows
  for each statement
  execute function status_indexer.enqueue_changed();

create trigger status_indexer_delete
  after delete on {{metadata}}
  referencing old table as old_rows
  for each statement
  execute function status_indexer.enqueue_changed();
