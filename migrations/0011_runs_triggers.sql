-- A `when` condition is evaluated outside any exception block, so nothing in it may raise an error,
-- whatever the heartbeat is: hence float8, which does not overflow here.

-- A new run is `running` by the column's default, which is right if its heartbeat is recent.
create trigger status_indexer_insert
  after insert on {{runs}}
  for each row
  when (new.last_heartbeat_ts is null
        or new.run_status <> 'running'
        or abs(new.last_heartbeat_ts::float8 - extract(epoch from clock_timestamp())::float8) > 5)
  execute function status_indexer.enqueue_row();

-- Heartbeats are the most frequent writes, and every statement that fires a trigger parses and plans
-- its `when` again: this one comparison is the only cost for a healthy run's heartbeat. Time does
-- the rest. A heartbeat does not change the status of a run that is not failed, unless it moves out
-- of range, and the sweeper finds those.
create trigger status_indexer_heartbeat
  after update of last_heartbeat_ts on {{runs}}
  for each row
  when (new.run_status = 'failed')
  execute function status_indexer.enqueue_row();
