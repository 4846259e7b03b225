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

-- A heartbeat is the hottest write there is, and a `when` is read and planned anew for every statement
-- that meets it: this one comparison is all that a healthy run's heartbeat pays. Time does the rest:
-- a run that is not failed changes no status by a heartbeat, unless one leaps out of the cutoff,
-- and those the sweeper finds.
create trigger status_indexer_heartbeat
  after update of last_heartbeat_ts on {{runs}}
  for each row
  when (new.run_status = 'failed')
  execute function status_indexer.enqueue_row();
