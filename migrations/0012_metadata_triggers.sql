-- Of a dozen metadata rows a task writes, two of the end step's can change a status. The `when` is
-- read and planned anew for every statement that meets it, so it holds the one comparison that most
-- rows fail; which rows of the end step matter, the function tells.
create trigger status_indexer_insert
  after insert on {{metadata}}
  for each row
  when (new.step_name = 'end')
  execute function status_indexer.enqueue_evidence();

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
