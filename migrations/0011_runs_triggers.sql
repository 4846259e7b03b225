-- A `when` is evaluated outside any exception block, so nothing in it may raise, whatever a
-- heartbeat says: hence float8, which neither overflows nor runs out of range.

-- A new run is `running` by the column's default, which is right if its heartbeat is fresh.
create trigger status_indexer_insert
  after insert on {{runs}}
  for each row
  when (new.last_heartbeat_ts is null
        or new.run_status <> 'running'
        or abs(new.last_heartbeat_ts::float8 - extract(epoch from clock_timestamp())::float8) > 5)
  execute function status_indexer.enqueue_row();

-- Which of the heartbeats matter, the function tells.
create trigger status_indexer_heartbeat
  after update of last_heartbeat_ts on {{runs}}
  for each row
  execute function status_indexer.heartbeat();
