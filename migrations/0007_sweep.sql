-- Puts the runs whose flow cannot be sent to a client into the queue, which is drained on the server.
create function status_indexer.enqueue_not_sendable(flow_ids text[], run_numbers bigint[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Before the ids of new queue rows are taken: see `publish_read_bounds`.
  perform txid_current();
  insert into status_indexer.queue (flow_id, run_number)
  select k.flow_id, k.run_number
    from unnest(flow_ids, run_numbers) k (flow_id, run_number)
   where status_indexer.sendable(k.flow_id) <> k.flow_id
     and not exists (select
                       from status_indexer.queue q
                      where q.flow_id = k.flow_id
                        and q.run_number = k.run_number);
end
$$;

-- The same for all runs, which a backfill calls, because scans leave these runs out.
create function status_indexer.enqueue_all_not_sendable() returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select status_indexer.enqueue_not_sendable(array_agg(r.flow_id::text), array_agg(r.run_number::bigint))
    from {{runs}} r
   where getdatabaseencoding() <> 'UTF8'
     and status_indexer.sendable(r.flow_id::text) <> r.flow_id
$$;

-- The name of the rule that decides one run's status; null if the server cannot evaluate the run.
create function status_indexer.reason_if_readable(
  flow_id     text,
  run_number  bigint,
  heartbeat   bigint,
  now_secs    numeric,
  cutoff_secs bigint
) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  return (select status_indexer.reason(e.ok, e.ok_ts, e.retry_ts, heartbeat, now_secs, cutoff_secs)
            from status_indexer.evidence(flow_id, run_number) e);
exception when others then
  return null;
end
$$;

-- Finds the runs whose status time alone may have changed, and when it next can. It changes no status;
-- `apply` decides.
--
-- With `since_secs` null, it returns every run whose stored status may be outdated by time: all
-- running runs with a heartbeat out of range, and the failed runs with a heartbeat in range (after
-- a step of the clock). Otherwise it returns only runs whose deadline is in (since_secs, now], so
-- that retrying runs are not evaluated again and again.
--
-- With `heartbeats_out_of_range`, it also returns the running runs whose heartbeat moved out of
-- range without a deadline passing: it was set back, far ahead or to null, which no trigger
-- reports. These are all that are out of range and not retrying. Because this reads the evidence of
-- the retrying runs, it is for occasional use.
create function status_indexer.due(
  since_secs     double precision,
  heartbeats_out_of_range boolean,
  out at_secs    double precision,
  out running    bigint,
  out flow_ids   text[],
  out run_numbers bigint[],
  -- The deadline that passed, seconds since the epoch, for each run.
  out deadlines  double precision[],
  out next_deadline double precision
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
declare
  now_secs numeric := status_indexer.clock();
  cutoff   bigint := status_indexer.cutoff();
begin
  at_secs := now_secs;

  with running_runs as (
    select r.flow_id::text,
           r.run_number::bigint,
           r.last_heartbeat_ts::bigint as heartbeat,
           status_indexer.in_range(r.last_heartbeat_ts::bigint, now_secs, cutoff) as in_range,
           status_indexer.next_change('heartbeat', r.last_heartbeat_ts::bigint, now_secs, cutoff) as expires_at
      from {{runs}} r
     where r.run_status = 'running'
  ), evaluated as (
    select w.flow_id,
           w.run_number,
           w.in_range,
           w.expires_at,
           case
             when w.in_range then null
             when w.expires_at < now_secs and (since_secs is null or w.expires_at > since_secs) then w.expires_at
             when since_secs is null then now_secs
             when heartbeats_out_of_range
                  and status_indexer.reason_if_readable(w.flow_id, w.run_number, w.heartbeat, now_secs,
                                                        cutoff) <> 'retrying'
               then now_secs
           end as deadline
      from running_runs w
  )
  select count(*),
         array_agg(flow_id) filter (where deadline is not null),
         array_agg(run_number) filter (where deadline is not null),
         array_agg(deadline::double precision) filter (where deadline is not null),
         min(expires_at) filter (where in_range)::double precision
    into running, flow_ids, run_numbers, deadlines, next_deadline
    from evaluated;

  select flow_ids || coalesce(array_agg(t.flow_id) filter (where t.due_secs <= now_secs), '{}'),
         run_numbers || coalesce(array_agg(t.run_number) filter (where t.due_secs <= now_secs), '{}'),
         deadlines || coalesce(array_agg(t.due_secs::double precision) filter (where t.due_secs <= now_secs), '{}'),
         least(next_deadline, (min(t.due_secs) filter (where t.due_secs > now_secs))::double precision)
    into flow_ids, run_numbers, deadlines, next_deadline
    from status_indexer.timers t;

  if since_secs is null then
    select flow_ids || coalesce(array_agg(r.flow_id::text), '{}'),
           run_numbers || coalesce(array_agg(r.run_number::bigint), '{}'),
           deadlines || coalesce(array_agg(now_secs::double precision), '{}')
      into flow_ids, run_numbers, deadlines
      from {{runs}} r
     where r.run_status = 'failed'
       and status_indexer.in_range(r.last_heartbeat_ts::bigint, now_secs, cutoff);
  end if;

  if getdatabaseencoding() <> 'UTF8' and flow_ids is not null then
    perform status_indexer.enqueue_not_sendable(flow_ids, run_numbers);
    select array_agg(k.flow_id), array_agg(k.run_number), array_agg(k.deadline)
      into flow_ids, run_numbers, deadlines
      from unnest(flow_ids, run_numbers, deadlines) k (flow_id, run_number, deadline)
     where status_indexer.sendable(k.flow_id) = k.flow_id;
  end if;
end
$$;

-- Determines what readers rely on (see `pending`): until when no deadline passes, and the first row of
-- the queue. Both are lower bounds, so they may be outdated, but never too high.
--
-- A snapshot does not contain the transactions that are in progress, and such a transaction may be
-- old: it evaluated a run, inserted one with a fresh heartbeat, or took an id of the queue long ago,
-- and commits after this function. So a call works in two steps. It returns a mark: a time, the next
-- transaction id at that time, and the last id of the queue before it. A later call with this mark
-- publishes, if every transaction with a lower id is over in its snapshot. Then whatever the snapshot
-- lacks happens after the mark: it creates no deadline before the mark's time plus the cutoff, less the
-- age of a heartbeat that counts as fresh; `apply` itself reports an earlier one, which the version
-- shows. And it takes no id of the queue up to the mark's.
create function status_indexer.publish_read_bounds(
  -- As returned by an earlier call; null for none.
  mark_secs        double precision,
  mark_xid         bigint,
  mark_queue_id    bigint,
  out published    boolean,
  -- What was published, seconds since the epoch.
  out until_secs   double precision,
  -- A new mark.
  out new_secs     double precision,
  out new_xid      bigint,
  out new_queue_id bigint
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
declare
  now_secs numeric;
  all_over boolean;
  version  bigint;
  until    numeric;
  first_id bigint;
begin
  -- In this order: the id of the queue, the time, the transaction id.
  select case when q.is_called then q.last_value else 0 end
    into new_queue_id
    from status_indexer.queue_id_seq q;
  now_secs := status_indexer.clock();
  new_secs := now_secs;
  new_xid := txid_current();
  published := false;

  if mark_xid is null then
    -- A copy of the database may lack the position of the queue's sequence.
    update status_indexer.state
       set first_queue_id = 0,
           read_bounds_version = read_bounds_version + 1
     where first_queue_id > new_queue_id + 1;
    return;
  end if;

  with bounds as (
    select s.cutoff_secs,
           s.first_queue_id,
           s.read_bounds_version,
           -- The clock may have stepped back.
           case
             when now_secs >= status_indexer.seconds(s.deadlines_from) then status_indexer.seconds(s.deadlines_until)
           end as known_until
      from status_indexer.state s
  ), running_runs as (
    select r.flow_id::text,
           r.run_number::bigint,
           r.last_heartbeat_ts::bigint as heartbeat,
           b.cutoff_secs,
           b.known_until,
           status_indexer.in_range(r.last_heartbeat_ts::bigint, now_secs, b.cutoff_secs) as in_range,
           status_indexer.next_change('heartbeat', r.last_heartbeat_ts::bigint, now_secs, b.cutoff_secs) as expires_at
      from bounds b
     cross join {{runs}} r
     where r.run_status = 'running'
  )
  select txid_snapshot_xmin(txid_current_snapshot()) >= mark_xid,
         b.read_bounds_version,
         least(mark_secs::numeric + b.cutoff_secs - status_indexer.fresh_secs(b.cutoff_secs),
               (select min(w.expires_at)
                  from running_runs w
                 where case
                         when w.in_range then true
                         -- The publication of the known range has read the evidence of these runs: they
                         -- are being retried.
                         when w.expires_at < w.known_until then false
                         -- Readers evaluate each run in the queue.
                         when (w.flow_id, w.run_number) in (select q.flow_id, q.run_number
                                                              from status_indexer.queued() q) then false
                         else status_indexer.reason_if_readable(w.flow_id, w.run_number, w.heartbeat, now_secs,
                                                                w.cutoff_secs) = 'heartbeat_lost'
                       end),
               (select min(t.due_secs)
                  from status_indexer.timers t
                 where (t.flow_id, t.run_number) not in (select q.flow_id, q.run_number
                                                           from status_indexer.queued() q))),
         least(mark_queue_id + 1,
               (select q.id
                  from status_indexer.queue q
                 where q.id >= b.first_queue_id
                 order by q.id
                 limit 1))
    into all_over, version, until, first_id
    from bounds b;

  if all_over then
    update status_indexer.state
       set deadlines_from = status_indexer.moment(mark_secs),
           -- Null for a time before the epoch, which the type may not hold.
           deadlines_until = case when until >= 0 then status_indexer.moment(until) end,
           first_queue_id = first_id,
           read_bounds_version = read_bounds_version + 1
     where read_bounds_version = version;
    published := found;
    until_secs := until;
  end if;
end
$$;
