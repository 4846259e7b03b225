-- What the triggers call. None of it ever raises: an error on metadata_v3 would lose the user's row,
-- one on runs_v3 would fail the creation of a run. What goes wrong is written to the server's log,
-- and the reconciler finds what was missed.

-- Sends the hint, unless the worker polls by itself anyway, or the notification queue is filling
-- up: a full one raises at commit, outside any exception block.
create function status_indexer.wake() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  -- A moment further off than a worker ever asks for was set before the clock stepped back.
  if (select q.last_value from status_indexer.quiet_until q)
       - (extract(epoch from clock_timestamp()) * 1000)::bigint between 0 and 1000 then
    return;
  end if;
  if pg_notification_queue_usage() < 0.5 then
    perform pg_notify('status_indexer', '');
  end if;
end
$$;

-- Puts one run into the queue.
create function status_indexer.enqueue(flow_id text, run_number bigint) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
begin
  insert into status_indexer.queue (flow_id, run_number)
  values (enqueue.flow_id, enqueue.run_number);
  perform status_indexer.wake();
exception when others then
  raise log 'status_indexer: run %/% was not enqueued: % (%)', flow_id, run_number, sqlerrm, sqlstate;
end
$$;

-- For row triggers on runs.
create function status_indexer.enqueue_row() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform status_indexer.enqueue(new.flow_id, new.run_number);
  return null;
end
$$;

-- For the end step's metadata rows, of which two of a dozen can change a status. No search path is
-- set, which would cost the others as much as all the rest; every name carries its schema.
create function status_indexer.enqueue_evidence() returns trigger
language plpgsql volatile security definer
as $$
begin
  if new.field_name operator(pg_catalog.=) 'attempt_ok' or new.field_name operator(pg_catalog.=) 'attempt' then
    perform status_indexer.enqueue(new.flow_id, new.run_number);
  end if;
  return null;
end
$$;

-- For statement triggers on metadata: the distinct runs whose end step's evidence was changed,
-- before and after.
create function status_indexer.enqueue_changed() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
begin
  if tg_op = 'UPDATE' then
    insert into status_indexer.queue (flow_id, run_number)
    select o.flow_id, o.run_number
      from old_rows o
     where o.step_name = 'end'
       and o.field_name in ('attempt', 'attempt_ok')
     union
    select n.flow_id, n.run_number
      from new_rows n
     where n.step_name = 'end'
       and n.field_name in ('attempt', 'attempt_ok');
  else
    insert into status_indexer.queue (flow_id, run_number)
    select distinct o.flow_id, o.run_number
      from old_rows o
     where o.step_name = 'end'
       and o.field_name in ('attempt', 'attempt_ok');
  end if;
  if found then
    perform status_indexer.wake();
  end if;
  return null;
exception when others then
  raise log 'status_indexer: changed evidence was not enqueued: % (%)', sqlerrm, sqlstate;
  return null;
end
$$;

revoke execute on function status_indexer.enqueue(text, bigint) from public;
revoke execute on function status_indexer.enqueue_evidence() from public;
revoke execute on function status_indexer.enqueue_row() from public;
revoke execute on function status_indexer.enqueue_changed() from public;

-- Whether all of the triggers are there and fire. A pass over all runs proves nothing without them:
-- what is written behind its back is lost.
create function status_indexer.listening() returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select count(*) = 5
    from pg_trigger t
    join status_indexer.state s on t.tgrelid in (to_regclass(s.runs_table), to_regclass(s.metadata_table))
   where starts_with(t.tgname::text, 'status_indexer_')
     and t.tgenabled in ('O', 'A')
$$;
