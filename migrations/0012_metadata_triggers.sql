-- Of the dozen metadata rows that a task writes, two of the end step can change a status. Every
-- statement that fires the trigger parses and plans the `when` again, so it contains only the
-- comparison that most rows fail. The function selects among the end step's rows.
create trigger status_indexer_insert
  after insert on {{metadata}}
  for each row
  when (new.step_name = 'end')
  execute function status_indexer.enqueue_evidence();

-- Statement triggers: rows are rarely updated or deleted, and then many at once.
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
