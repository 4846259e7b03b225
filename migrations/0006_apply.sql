-- The one way to change a status.
--
-- Locks the runs' rows in key order, and then, in a statement with a newer snapshot, judges them
-- and writes those that differ. Evidence committed before the lock is seen; evidence committed
-- later has a queue row of its own. It never waits for a row: one that somebody else holds goes
-- (back) to the queue, so that a batch keeps its locks for as long as it computes and no longer,
-- and no deadlock can have the indexer in it.
create function status_indexer.apply(
  flow_ids      text[],
  run_numbers   bigint[],
  enqueued_ats  timestamptz[],
  out applied   integer,
  -- [[flow_id, run_number], ...] of the rows that were locked by somebody else.
  out skipped   jsonb,
  -- [{flow_id, run_number, from, to, reason}, ...], as the text that it is sent as: jsonb would be
  -- put together only to be taken apart.
  out changes   json,
  -- [{flow_id, run_number, value}, ...] of the runs whose newest attempt_ok is no boolean.
  out invalid   jsonb,
  -- The next moment that time alone changes one of these runs, seconds since the epoch.
  out next_deadline double precision,
  -- For how long the rows were held, which is for how long a heartbeat may have waited. Null where
  -- none was.
  out held_secs double precision
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set jit = off
-- Planning anew for the number of keys takes longer than judging one run.
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  locked_flow_ids    text[];
  locked_run_numbers bigint[];
  began              timestamptz := clock_timestamp();
  at_secs            numeric;
  cutoff             bigint;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using
      errcode = 'invalid_transaction_state',
      message = 'status_indexer.apply runs in read committed isolation only',
      hint = 'an older snapshot would write a stale status';
  end if;

  select array_agg(held.flow_id), array_agg(held.run_number)
    into locked_flow_ids, locked_run_numbers
    from (select r.flow_id, r.run_number
            from {{runs}} r
           where (r.flow_id, r.run_number) in (select k.flow_id, k.run_number
                                                 from unnest(flow_ids, run_numbers) k (flow_id, run_number))
           order by r.flow_id, r.run_number
             for no key update of r skip locked) held;

  applied := coalesce(cardinality(locked_flow_ids), 0);

  if applied < cardinality(flow_ids) then
    -- A key with no run needs nothing: its evidence is an orphan.
    with missed as (
      select k.flow_id, k.run_number, min(k.enqueued_at) as enqueued_at
        from unnest(flow_ids, run_numbers, enqueued_ats) k (flow_id, run_number, enqueued_at)
       where not exists (select
                           from unnest(locked_flow_ids, locked_run_numbers) l (flow_id, run_number)
                          where l.flow_id = k.flow_id
                            and l.run_number = k.run_number)
         and exists (select
                       from {{runs}} r
                      where r.flow_id = k.flow_id
                        and r.run_number = k.run_number)
       group by k.flow_id, k.run_number
    ), requeued as (
      insert into status_indexer.queue (flow_id, run_number, enqueued_at)
      select flow_id, run_number, coalesce(enqueued_at, clock_timestamp())
        from missed
    )
    select jsonb_agg(jsonb_build_array(flow_id, run_number))
      into skipped
      from missed;
  end if;

  if applied = 0 then
    return;
  end if;

  cutoff := status_indexer.cutoff();
  at_secs := status_indexer.clock();

  with judged as materialized (
    select r.flow_id,
           r.run_number,
           r.run_status as was,
           r.last_heartbeat_ts as heartbeat,
           e.ok_id,
           e.ok is null and e.ok_id is not null as invalid,
           status_indexer.reason(e.ok, e.ok_ts, e.retry_ts, r.last_heartbeat_ts, at_secs, cutoff) as reason
      from unnest(locked_flow_ids, locked_run_numbers) k (flow_id, run_number)
      join {{runs}} r on r.flow_id = k.flow_id and r.run_number = k.run_number
     cross join lateral status_indexer.evidence(r.flow_id, r.run_number) e
  ), written as (
    update {{runs}} r
       set run_status = status_indexer.status(j.reason)
      from judged j
     where r.flow_id = j.flow_id
       and r.run_number = j.run_number
       and j.was <> status_indexer.status(j.reason)
  ), future as (
    -- A heartbeat ahead of the clock by more than the cutoff comes into range by time alone.
    select flow_id, run_number, heartbeat - cutoff as due_secs
      from judged
     where reason = 'heartbeat_lost'
       and heartbeat > at_secs
  ), disarmed as (
    delete from status_indexer.timers t
     using judged j
     where t.flow_id = j.flow_id
       and t.run_number = j.run_number
       and not (j.reason = 'heartbeat_lost' and j.heartbeat > at_secs)
  ), armed as (
    insert into status_indexer.timers as t (flow_id, run_number, due_secs)
    select flow_id, run_number, due_secs
      from future
        on conflict (flow_id, run_number) do update
       set due_secs = excluded.due_secs
     where t.due_secs <> excluded.due_secs
  )
  select json_agg(json_build_object('flow_id', flow_id,
                                    'run_number', run_number,
                                    'from', was,
                                    'to', status_indexer.status(reason),
                                    'reason', reason))
           filter (where was <> status_indexer.status(reason)),
         jsonb_agg(jsonb_build_object('flow_id', flow_id,
                                      'run_number', run_number,
                                      'value', status_indexer.value_of(ok_id)))
           filter (where invalid),
         least(min(heartbeat::numeric + cutoff) filter (where reason = 'heartbeat'),
               (select min(due_secs) from future))::double precision
    into changes, invalid, next_deadline
    from judged;

  held_secs := extract(epoch from clock_timestamp() - began);
end
$$;

-- Claims up to `batch` queue rows with an id above `after_id` and applies their runs, in one call:
-- a client that dies or freezes leaves either all of it done or nothing.
create function status_indexer.drain(
  after_id      bigint,
  batch         integer,
  -- Not null: for so many milliseconds the worker comes by itself, writers need not wake it.
  quiet_ms      integer,
  out claimed   integer,
  out last_id   bigint,
  -- Seconds from the event's writing to the end of this call, one an event that was applied.
  out lags      double precision[],
  out applied   integer,
  out skipped   jsonb,
  out changes   json,
  out invalid   jsonb,
  out next_deadline double precision,
  out held_secs double precision
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set jit = off
-- Planning anew for the number of keys takes longer than judging one run.
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  flow_ids     text[];
  run_numbers  bigint[];
  enqueued_ats timestamptz[];
begin
  if quiet_ms is not null then
    perform setval('status_indexer.quiet_until',
                   (extract(epoch from clock_timestamp()) * 1000)::bigint + quiet_ms);
  end if;

  with claim as (
    -- `= any (array(...))`, not a join: with a join the planner, which sees a queue that is
    -- usually empty, deletes more rows than the limit.
    delete from status_indexer.queue q
     where q.id = any (array(select w.id
                               from status_indexer.queue w
                              where w.id > after_id
                              order by w.id
                              limit batch
                                for update skip locked))
    returning q.id, q.flow_id, q.run_number, q.enqueued_at
  )
  select count(*), max(id), array_agg(flow_id), array_agg(run_number), array_agg(enqueued_at)
    into claimed, last_id, flow_ids, run_numbers, enqueued_ats
    from claim;

  if claimed = 0 then
    return;
  end if;

  select a.applied, a.skipped, a.changes, a.invalid, a.next_deadline, a.held_secs
    into applied, skipped, changes, invalid, next_deadline, held_secs
    from status_indexer.apply(flow_ids, run_numbers, enqueued_ats) a;

  select array_agg(extract(epoch from clock_timestamp() - k.enqueued_at)::double precision)
    into lags
    from unnest(flow_ids, run_numbers, enqueued_ats) k (flow_id, run_number, enqueued_at)
   where skipped is null
      or not skipped @> jsonb_build_array(jsonb_build_array(k.flow_id, k.run_number));
end
$$;

-- Moves what updates have left in the pending lists of the runs' GIN indexes (upstream's on tags)
-- into those indexes. Whose entry makes a list too long moves all of it, with the rows of his batch
-- held; a pass calls this between two batches instead, when it holds none. With the rights of its
-- owner, for nobody but the index's may. Whatever stands in the way, the next update or vacuum
-- does it. Open to all who may use the schema: it is no more than what any update may have to do.
create function status_indexer.move_pending() returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  pending regclass;
begin
  for pending in
    select i.indexrelid
      from status_indexer.state s
      join pg_index i on i.indrelid = to_regclass(s.runs_table) and i.indisvalid
      join pg_class c on c.oid = i.indexrelid
      join pg_am a on a.oid = c.relam and a.amname = 'gin'
  loop
    begin
      perform gin_clean_pending_list(pending);
    exception when others then
      raise debug 'status_indexer: the pending list of % was not moved: % (%)', pending, sqlerrm, sqlstate;
    end;
  end loop;
end
$$;
