-- No trigger on the runs table names a column of upstream, in `update of` or in `when`: PostgreSQL
-- would refuse to change that column's type.

-- Runs are created rarely, so the function contains the condition.
create trigger status_indexer_insert
  after insert on {{runs}}
  for each row
  execute function status_indexer.enqueue_run();

-- Heartbeats are the most frequent writes, and every statement that fires a trigger parses and plans
-- its `when` again: this one comparison is the only cost for a healthy run's heartbeat. Time does
-- the rest. A heartbeat does not change the status of a run that is not failed, unless it moves out
-- of range, and the sweeper finds those.
create trigger status_indexer_heartbeat
  after update on {{runs}}
  for each row
  when (new.run_status = 'failed')
  execute function status_indexer.enqueue_run();
