-- Of the dozen metadata rows that a task writes, two of the end step can change a status. Every
-- statement that fires the trigger parses and plans the `when` again, so it contains only the
-- comparison that most rows fail. The function selects among the end step's rows.
create trigger status_indexer_insert
  after insert on {{metadata}}
  for each row
  when (new.step_name = 'end')
  execute function status_indexer.enqueue_evidence();

-- Row triggers, although many rows are updated or deleted at a time: a statement trigger with
-- transition tables keeps a copy of each row, which becomes a temporary file, and beyond
-- `temp_file_limit` the writer's own statement fails. A row that fails the `when` costs neither
-- memory nor a call.
create trigger status_indexer_update
  after update on {{metadata}}
  for each row
  when (old.step_name = 'end' or new.step_name = 'end')
  execute function status_indexer.enqueue_changed();

create trigger status_indexer_delete
  after delete on {{metadata}}
  for each row
  when (old.step_name = 'end')
  execute function status_indexer.enqueue_changed();
