-- What the triggers call. None of these functions raises an error: on metadata_v3 it would lose the
-- user's row, and on runs_v3 it would fail the creation of a run. A failure is written to the
-- server's log, and the reconciler finds what was missed.

-- Sends the wakeup, unless the worker polls, or the notification queue is half full: a full queue
-- raises an error at commit, outside any exception block.
create function status_indexer.notify_worker() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  -- A time that is further ahead than any worker sets was set before the clock stepped back.
  if (select s.last_value from status_indexer.notify_suppressed_until s)
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
  perform status_indexer.notify_worker();
exception when others then
  raise log 'status_indexer: run %/% was not enqueued: % (%)', flow_id, run_number, sqlerrm, sqlstate;
end
$$;

-- The trigger functions below read a row from `to_jsonb`, or do so where a direct read fails: an open
-- session keeps the types with which it first planned an expression such as `new.flow_id`, and raises
-- an error in each later call after another session has changed the type of that column.

-- For row triggers on the runs table: a new run whose status may not be `running`, and a heartbeat of
-- a failed run. A new run is `running` by the column's default, which is right if its heartbeat is
-- recent.
create function status_indexer.enqueue_run() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  run       jsonb;
  heartbeat text;
begin
  run := to_jsonb(new);
  heartbeat := run ->> 'last_heartbeat_ts';
  if tg_op = 'INSERT' then
    if run ->> 'run_status' = 'running' and abs(heartbeat::numeric - status_indexer.clock()) <= 5 then
      return null;
    end if;
  elsif heartbeat is not distinct from to_jsonb(old) ->> 'last_heartbeat_ts' then
    return null;
  end if;
  perform status_indexer.enqueue(run ->> 'flow_id', (run ->> 'run_number')::bigint);
  return null;
exception when others then
  raise log 'status_indexer: a run was not enqueued: % (%)', sqlerrm, sqlstate;
  return null;
end
$$;

-- The columns of a metadata row that can affect a status, with its run first; null where the row is
-- not evidence of the end step.
create function status_indexer.evidence_of(metadata jsonb) returns jsonb
language sql immutable parallel safe as $$
  select case
           when metadata ->> 'step_name' = 'end' and metadata ->> 'field_name' in ('attempt', 'attempt_ok') then
             jsonb_build_array(metadata -> 'flow_id', metadata -> 'run_number', metadata -> 'field_name',
                               metadata -> 'value', metadata -> 'ts_epoch', metadata -> 'id')
         end
$$;

-- For updated and deleted metadata rows of the end step: the run whose evidence changed, and both
-- runs where an update moves a row from one to the other. An update of other columns, such as the
-- tags of all rows, enqueues nothing.
create function status_indexer.enqueue_changed() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  before jsonb;
  after  jsonb;
begin
  -- In two steps: `evidence_of` is inlined only if its argument is a variable.
  before := to_jsonb(old);
  before := status_indexer.evidence_of(before);
  if tg_op = 'UPDATE' then
    after := to_jsonb(new);
    after := status_indexer.evidence_of(after);
  end if;
  if before is not distinct from after then
    return null;
  end if;
  if before is not null then
    perform status_indexer.enqueue(before ->> 0, (before ->> 1)::bigint);
  end if;
  if after is not null and (before -> 0, before -> 1) is distinct from (after -> 0, after -> 1) then
    perform status_indexer.enqueue(after ->> 0, (after ->> 1)::bigint);
  end if;
  return null;
exception when others then
  raise log 'status_indexer: changed evidence was not enqueued: % (%)', sqlerrm, sqlstate;
  return null;
end
$$;

-- A new metadata row as JSON, for `enqueue_evidence`.
create function status_indexer.enqueue_inserted(metadata jsonb) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if status_indexer.evidence_of(metadata) is not null then
    perform status_indexer.enqueue(metadata ->> 'flow_id', (metadata ->> 'run_number')::bigint);
  end if;
exception when others then
  raise log 'status_indexer: evidence was not enqueued: % (%)', sqlerrm, sqlstate;
end
$$;

-- For new metadata rows of the end step, of which two in a dozen can change a status. No search path
-- is set, because that would cost the other ten as much as everything else; all names are qualified.
create function status_indexer.enqueue_evidence() returns trigger
language plpgsql volatile security definer
as $$
begin
  if new.field_name operator(pg_catalog.=) 'attempt_ok' or new.field_name operator(pg_catalog.=) 'attempt' then
    perform status_indexer.enqueue(new.flow_id, new.run_number);
  end if;
  return null;
exception when others then
  perform status_indexer.enqueue_inserted(pg_catalog.to_jsonb(new));
  return null;
end
$$;

revoke execute on function status_indexer.enqueue(text, bigint) from public;
revoke execute on function status_indexer.enqueue_inserted(jsonb) from public;
revoke execute on function status_indexer.enqueue_evidence() from public;
revoke execute on function status_indexer.enqueue_changed() from public;
revoke execute on function status_indexer.enqueue_run() from public;

-- A fingerprint of the functions that the triggers execute. A migration that replaces one of them
-- has to store the new fingerprint.
create function status_indexer.trigger_functions_hash() returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select md5(string_agg(p.proname || p.prosrc, '' order by p.proname::text collate "C"))
    from pg_proc p
   where p.pronamespace = 'status_indexer'::regnamespace
     and p.proname in ('notify_worker', 'enqueue', 'enqueue_run', 'evidence_of', 'enqueue_changed',
                       'enqueue_inserted', 'enqueue_evidence')
$$;

update status_indexer.state
   set trigger_functions = status_indexer.trigger_functions_hash();

-- The indexer's triggers, and the state of each: `enabled`, `disabled`, `missing`, `replaced` (by a
-- trigger with the same name that executes another function of this schema), `name taken` (by a
-- trigger that executes a function of another schema), or `function replaced`. The list comes from
-- the `create trigger` statements of the migrations.
create function status_indexer.triggers()
returns table (table_name text, trigger_name text, state text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select expected.table_name,
         expected.trigger_name,
         case
           when t.oid is null then 'missing'
           when f.pronamespace <> 'status_indexer'::regnamespace then 'name taken'
           when t.tgfoid is distinct from to_regprocedure(expected.function) then 'replaced'
           when t.tgenabled not in ('O', 'A') then 'disabled'
           when s.trigger_functions is distinct from (select status_indexer.trigger_functions_hash())
             then 'function replaced'
           else 'enabled'
         end
    from status_indexer.state s
   cross join lateral (values
           {{triggers}}) expected (table_name, trigger_name, function)
    left join pg_trigger t on t.tgrelid = to_regclass(expected.table_name)
                          and t.tgname = expected.trigger_name
    left join pg_proc f on f.oid = t.tgfoid
   order by 1, 2
$$;

-- Whether every trigger exists and fires. Without them a scan proves nothing: evidence written
-- behind its position would be lost.
create function status_indexer.triggers_enabled() returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(bool_and(t.state = 'enabled'), false)
    from status_indexer.triggers() t
$$;

-- What keeps the indexer from seeing every row and every event, for the role that calls. While there is
-- any, no scan makes the column valid, and a valid column is invalidated.
create function status_indexer.obstacles()
returns table (kind text, detail text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
    select 'triggers_missing',
           format('trigger %s on %s is %s: run `status-indexer migrate status`',
                  t.trigger_name, t.table_name, t.state)
      from status_indexer.triggers() t
     where t.state <> 'enabled';

  return query
    select 'rows_hidden',
           format('row level security of %s applies to role %s: grant it BYPASSRLS, or run as the owner '
                  'of the table', o.name, current_user)
      from status_indexer.state s
     cross join lateral unnest(array[s.runs_table, s.metadata_table]) o (name)
     where row_security_active(to_regclass(o.name)::oid);

  -- Scans read the runs in the order of an index on text.
  if current_setting('server_version_num')::integer >= 150000 then
    return query execute $query$
      select 'collation_changed',
             format('database %s was created with version %s of its collation, and the server now uses %s: '
                    'reindex its tables, then run `alter database %I refresh collation version`',
                    d.datname, d.datcollversion, pg_database_collation_actual_version(d.oid), d.datname)
        from pg_database d
       where d.datname = current_database()
         and d.datcollversion <> pg_database_collation_actual_version(d.oid)$query$;
  end if;
end
$$;
