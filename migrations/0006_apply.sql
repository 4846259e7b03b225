-- The runs that have rows in the queue. An old snapshot keeps every earlier row in the table, and the
-- planner cannot know that they are dead, so it would rather scan all of them than use the index.
create function status_indexer.queued(
  -- Only those of this flow, or this run of it; null for all.
  only_flow text default null,
  only_run  bigint default null
)
returns table (flow_id text, run_number bigint)
language plpgsql stable rows 10
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
begin
  return query
    select q.flow_id, q.run_number
      from status_indexer.queue q
     where q.id >= (select s.first_queue_id from status_indexer.state s)
       and (only_flow is null or q.flow_id = only_flow)
       and (only_run is null or q.run_number = only_run);
end
$$;

-- The only code that changes a status.
--
-- Locks the runs' rows in key order. Then a second statement, with a newer snapshot, evaluates them
-- and updates those whose status differs. It sees all evidence committed before the lock; evidence
-- committed later has a queue row of its own. It never waits for a row lock: a run whose row is
-- locked by another transaction is left to the queue. So a batch holds its locks only while it
-- computes, and the indexer cannot be part of a deadlock.
create function status_indexer.apply(
  flow_ids      text[],
  run_numbers   bigint[],
  -- Whether the runs have rows in the queue, which the caller keeps if a run is skipped.
  queued        boolean,
  out applied   integer,
  -- [[flow_id, run_number], ...] of the runs whose rows other transactions had locked.
  out skipped   jsonb,
  -- [{flow_id, run_number, from, to, reason}, ...] of the runs that were written; only their end changed
  -- where both are equal. As json, because it is sent as text: jsonb would
  -- be assembled only to be converted back.
  out changes   json,
  -- [{flow_id, run_number, value}, ...] of the runs whose newest attempt_ok is not a boolean.
  out invalid   jsonb,
  -- When time next changes one of these runs, seconds since the epoch.
  out next_deadline double precision,
  -- How long the row locks were held, which is the longest that a heartbeat may have waited. Null
  -- where no row was locked.
  out held_secs double precision
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set jit = off
-- Planning again for the actual number of keys takes longer than evaluating one run.
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  locked_flow_ids    text[];
  locked_run_numbers bigint[];
  began              timestamptz := clock_timestamp();
  now_secs           numeric;
  cutoff             bigint;
  keeps_finish       boolean;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using
      errcode = 'invalid_transaction_state',
      message = 'status_indexer.apply requires read committed isolation',
      hint = 'An older snapshot would write an outdated status.';
  end if;

  select array_agg(locked.flow_id), array_agg(locked.run_number)
    into locked_flow_ids, locked_run_numbers
    from (select r.flow_id, r.run_number
            from {{runs}} r
           where (r.flow_id, r.run_number) in (select k.flow_id, k.run_number
                                                 from unnest(flow_ids, run_numbers) k (flow_id, run_number))
           order by r.flow_id, r.run_number
             for no key update of r skip locked) locked;

  applied := coalesce(cardinality(locked_flow_ids), 0);

  if applied < cardinality(flow_ids) then
    -- A key without a run is dropped, and so is what was kept for it: the run was deleted, or its
    -- evidence belongs to no run.
    delete from status_indexer.timers t
     using unnest(flow_ids, run_numbers) k (flow_id, run_number)
     where t.flow_id = k.flow_id
       and t.run_number = k.run_number
       and not exists (select
                         from {{runs}} r
                        where r.flow_id = k.flow_id
                          and r.run_number = k.run_number);

    -- Before the ids of new queue rows are taken: see `publish_read_bounds`.
    perform txid_current();

    with not_locked as (
      select distinct k.flow_id, k.run_number
        from unnest(flow_ids, run_numbers) k (flow_id, run_number)
       where not exists (select
                           from unnest(locked_flow_ids, locked_run_numbers) l (flow_id, run_number)
                          where l.flow_id = k.flow_id
                            and l.run_number = k.run_number)
         and exists (select
                       from {{runs}} r
                      where r.flow_id = k.flow_id
                        and r.run_number = k.run_number)
    ), waiting as materialized (
      -- Without the rows that another call of `drain` has taken: it may have evaluated its runs before.
      select q.flow_id, q.run_number
        from status_indexer.queue q
       where queued is not true
         and (q.flow_id, q.run_number) in (select n.flow_id, n.run_number from not_locked n)
         for key share of q skip locked
    ), enqueued as (
      insert into status_indexer.queue (flow_id, run_number)
      select flow_id, run_number
        from not_locked n
       where queued is not true
         and not exists (select
                           from waiting w
                          where w.flow_id = n.flow_id
                            and w.run_number = n.run_number)
    )
    select jsonb_agg(jsonb_build_array(flow_id, run_number))
      into skipped
      from not_locked;
  end if;

  if applied = 0 then
    return;
  end if;

  select s.cutoff_secs, s.keeps_finished_at
    into cutoff, keeps_finish
    from status_indexer.state s;
  now_secs := status_indexer.clock();

  with with_reason as materialized (
    select r.flow_id,
           r.run_number,
           r.run_status as stored,
           r.run_finished_at as stored_finish,
           r.last_heartbeat_ts::bigint as heartbeat,
           e.ok_id,
           e.ok_ts,
           e.ok is null and e.ok_id is not null as invalid,
           status_indexer.reason(e.ok, e.ok_ts, e.retry_ts, r.last_heartbeat_ts::bigint, now_secs, cutoff) as reason
      from unnest(locked_flow_ids, locked_run_numbers) k (flow_id, run_number)
      join {{runs}} r on r.flow_id = k.flow_id and r.run_number = k.run_number
     cross join lateral status_indexer.evidence(r.flow_id, r.run_number) e
  ), evaluated as materialized (
    select w.*,
           case when keeps_finish then status_indexer.finished_at(w.reason, w.ok_ts, w.heartbeat) end as finish
      from with_reason w
  ), updated as (
    update {{runs}} r
       set run_status = status_indexer.status(e.reason),
           run_finished_at = e.finish
      from evaluated e
     where r.flow_id = e.flow_id
       and r.run_number = e.run_number
       and (e.stored <> status_indexer.status(e.reason) or e.stored_finish is distinct from e.finish)
  ), timers_to_set as (
    -- No index finds a failed run whose heartbeat comes into range, so it needs a timer.
    select flow_id,
           run_number,
           status_indexer.next_change(reason, heartbeat, now_secs, cutoff)::bigint as due_secs
      from evaluated
     where reason = 'heartbeat_lost'
       and status_indexer.next_change(reason, heartbeat, now_secs, cutoff) is not null
  ), timers_deleted as (
    delete from status_indexer.timers t
     using evaluated e
     where t.flow_id = e.flow_id
       and t.run_number = e.run_number
       and not (e.reason = 'heartbeat_lost'
                and status_indexer.next_change(e.reason, e.heartbeat, now_secs, cutoff) is not null)
  ), timers_set as (
    insert into status_indexer.timers as t (flow_id, run_number, due_secs)
    select flow_id, run_number, due_secs
      from timers_to_set
        on conflict (flow_id, run_number) do update
       set due_secs = excluded.due_secs
     where t.due_secs <> excluded.due_secs
  )
  select json_agg(json_build_object('flow_id', status_indexer.sendable(flow_id),
                                    'run_number', run_number,
                                    'from', stored,
                                    'to', status_indexer.status(reason),
                                    'reason', reason))
           filter (where stored <> status_indexer.status(reason) or stored_finish is distinct from finish),
         jsonb_agg(jsonb_build_object('flow_id', status_indexer.sendable(flow_id),
                                      'run_number', run_number,
                                      'value', status_indexer.evidence_text(ok_id)))
           filter (where invalid),
         min(status_indexer.next_change(reason, heartbeat, now_secs, cutoff))::double precision
    into changes, invalid, next_deadline
    from evaluated;

  -- Readers do not look at deadlines until `deadlines_until`, which never lies beyond this sum.
  if next_deadline < now_secs + cutoff - status_indexer.fresh_secs(cutoff) then
    update status_indexer.state
       set deadlines_until = least(deadlines_until, status_indexer.moment(next_deadline)),
           read_bounds_version = read_bounds_version + 1;
  end if;

  held_secs := extract(epoch from clock_timestamp() - began);
end
$$;

-- The same for each run on its own, for a batch that the server has refused, for example because a
-- trigger on the runs table raises an error: the runs that it refuses are left to the queue, and the
-- others are written.
create function status_indexer.apply_each(
  flow_ids      text[],
  run_numbers   bigint[],
  queued        boolean,
  out applied   integer,
  out skipped   jsonb,
  out changes   json,
  out invalid   jsonb,
  out next_deadline double precision,
  out held_secs double precision,
  -- [{position, flow_id, run_number, sqlstate, error}, ...] of the runs that the server refuses, with
  -- their positions in the arrays.
  out refused   jsonb
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  one record;
begin
  applied := 0;
  held_secs := 0;
  for i in 1 .. coalesce(cardinality(flow_ids), 0) loop
    begin
      select * into one
        from status_indexer.apply(flow_ids[i:i], run_numbers[i:i], queued);
      applied := applied + one.applied;
      held_secs := held_secs + coalesce(one.held_secs, 0);
      next_deadline := least(next_deadline, one.next_deadline);
      if one.skipped is not null then
        skipped := coalesce(skipped, '[]') || one.skipped;
      end if;
      if one.changes is not null then
        changes := coalesce(changes::jsonb, '[]') || one.changes::jsonb;
      end if;
      if one.invalid is not null then
        invalid := coalesce(invalid, '[]') || one.invalid;
      end if;
    exception when others then
      refused := coalesce(refused, '[]') || jsonb_build_array(jsonb_build_object(
        'position', i,
        'flow_id', status_indexer.sendable(flow_ids[i]),
        'run_number', run_numbers[i],
        'sqlstate', sqlstate,
        'error', status_indexer.sendable(left(sqlerrm, 200))));
      if queued is not true and not exists (select
                                              from status_indexer.queue q
                                             where q.flow_id = flow_ids[i]
                                               and q.run_number = run_numbers[i]) then
        perform txid_current();
        insert into status_indexer.queue (flow_id, run_number)
        values (flow_ids[i], run_numbers[i]);
      end if;
    end;
  end loop;
end
$$;

-- Takes up to `batch` queue rows with an id above `after_id` and applies their runs, in one call:
-- if the client dies or freezes, either all of it is done or nothing. The rows of runs that are
-- locked or refused stay in the queue as they are.
create function status_indexer.drain(
  after_id      bigint,
  batch         integer,
  -- Not null: the worker polls for this many milliseconds, and writers need not notify it.
  suppress_ms   integer,
  -- Rows that are not taken.
  except_ids    bigint[] default '{}',
  -- Whether to apply each run on its own.
  each          boolean default false,
  out claimed   integer,
  out last_id   bigint,
  -- The taken rows that stay in the queue.
  out kept_ids  bigint[],
  -- Seconds from writing the event to the end of this call, for each event that was applied.
  out lags      double precision[],
  out applied   integer,
  out skipped   jsonb,
  out changes   json,
  out invalid   jsonb,
  out next_deadline double precision,
  out held_secs double precision,
  out refused   jsonb
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set jit = off
-- Planning again for the actual number of keys takes longer than evaluating one run.
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  ids         bigint[];
  flow_ids    text[];
  run_numbers bigint[];
begin
  if suppress_ms is not null then
    perform setval('status_indexer.notify_suppressed_until',
                   (extract(epoch from clock_timestamp()) * 1000)::bigint + suppress_ms);
  end if;

  select count(*), max(id), array_agg(id), array_agg(flow_id), array_agg(run_number)
    into claimed, last_id, ids, flow_ids, run_numbers
    from (select q.id, q.flow_id, q.run_number
            from status_indexer.queue q
           -- Never below the first row: an old snapshot keeps the entries of all earlier rows in the index.
           where q.id >= greatest(after_id + 1, (select s.first_queue_id from status_indexer.state s))
             and q.id <> all (except_ids)
           order by q.id
           limit batch
             for update skip locked) claim;

  if claimed = 0 then
    return;
  end if;

  if each then
    select a.applied, a.skipped, a.changes, a.invalid, a.next_deadline, a.held_secs, a.refused
      into applied, skipped, changes, invalid, next_deadline, held_secs, refused
      from status_indexer.apply_each(flow_ids, run_numbers, true) a;
  else
    select a.applied, a.skipped, a.changes, a.invalid, a.next_deadline, a.held_secs
      into applied, skipped, changes, invalid, next_deadline, held_secs
      from status_indexer.apply(flow_ids, run_numbers, true) a;
  end if;

  if skipped is not null or refused is not null then
    select array_agg(k.id)
      into kept_ids
      from unnest(ids, flow_ids, run_numbers) with ordinality k (id, flow_id, run_number, position)
     where (k.flow_id, k.run_number) in (
             select s.run ->> 0, (s.run ->> 1)::bigint
               from jsonb_array_elements(coalesce(skipped, '[]')) s (run))
        or k.position in (
             select (r.run ->> 'position')::bigint
               from jsonb_array_elements(coalesce(refused, '[]')) r (run));
  end if;

  -- `= any` of an array instead of a join: the planner knows a queue that is usually empty.
  with done as (
    delete from status_indexer.queue q
     where q.id = any (ids)
       and (kept_ids is null or q.id <> all (kept_ids))
    returning q.enqueued_at
  )
  select array_agg(extract(epoch from clock_timestamp() - enqueued_at)::double precision)
    into lags
    from done;
end
$$;

-- Flushes the pending lists of the runs table's GIN indexes (upstream's index on tags). The
-- transaction that fills a pending list flushes all of it while it holds its row locks, so a scan
-- calls this between two batches, when it holds none. SECURITY DEFINER, because only the index's
-- owner may flush it; open to every role that may use the schema, because it does nothing that an
-- update of the table may not cause. An error is only logged: the next update or vacuum flushes the
-- list instead.
create function status_indexer.flush_pending_list() returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  gin_index regclass;
begin
  for gin_index in
    select i.indexrelid
      from status_indexer.state s
      join pg_index i on i.indrelid = to_regclass(s.runs_table) and i.indisvalid
      join pg_class c on c.oid = i.indexrelid
      join pg_am a on a.oid = c.relam and a.amname = 'gin'
  loop
    begin
      perform gin_clean_pending_list(gin_index);
    exception when others then
      raise debug 'status_indexer: pending list of % was not flushed: % (%)', gin_index, sqlerrm, sqlstate;
    end;
  end loop;
end
$$;
