-- Exact reads. A queue row is committed with the evidence and leaves with the status, so in one
-- snapshot the column is right for every run but a few, which these functions name and evaluate.

-- The time of a read, seconds since the epoch: that of the client's statement, so that all parts of
-- the statement agree on which deadlines have passed.
create function status_indexer.read_clock() returns numeric
language sql stable parallel safe as $$
  select status_indexer.seconds(statement_timestamp())
$$;

-- The time at which a read evaluates runs. On a standby it is not after the last transaction
-- replayed: heartbeats after it have not arrived, and their runs must not look lost.
create function status_indexer.evaluation_clock() returns numeric
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  now_secs numeric := status_indexer.read_clock();
begin
  if pg_is_in_recovery() then
    return least(now_secs, status_indexer.seconds(pg_last_xact_replay_timestamp()));
  end if;
  return now_secs;
end
$$;

-- How old the data on a standby is at most, seconds: since the last transaction replayed, or the last
-- heartbeat of the leading daemon. Null on a primary, and where neither is known.
create function status_indexer.replica_age() returns double precision
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if not pg_is_in_recovery() then
    return null;
  end if;
  return greatest(0, extract(epoch from clock_timestamp()
                                        - greatest(pg_last_xact_replay_timestamp(),
                                                   (select to_timestamp(h.last_value * 0.001)
                                                      from status_indexer.leader_heartbeat h
                                                     where h.last_value > 0))));
end
$$;

-- Whether statuses may be read: the column is valid, or the site has chosen to evaluate every run
-- until it is, by the setting `status_indexer.evaluate_while_invalid`.
create function status_indexer.is_readable(valid_since timestamptz) returns boolean
language sql stable parallel safe as $$
  select valid_since is not null
         or status_indexer.parse_boolean(current_setting('status_indexer.evaluate_while_invalid', true)) is true
$$;

-- What a read has to know of the state. `column_is_exact` is the usual case: no run is pending. A view,
-- because the read API decides by the same conditions, without a call, whether it needs `pending`.
create view status_indexer.read_state as
  select status_indexer.read_clock() as now_secs,
         s.valid_since,
         s.cutoff_secs,
         s.first_queue_id,
         status_indexer.seconds(s.deadlines_from) as deadlines_from_secs,
         status_indexer.seconds(s.deadlines_until) as deadlines_until_secs,
         s.no_deadline,
         s.valid_since is not null
           and s.no_deadline
           -- In the order of the index, so that the planner does not scan the dead rows of the table.
           and (select q.id
                  from status_indexer.queue q
                 where q.id >= s.first_queue_id
                 order by q.id
                 limit 1) is null
           as column_is_exact
    from (select s.*,
                 (statement_timestamp() >= s.deadlines_from and statement_timestamp() < s.deadlines_until) is true
                   as no_deadline
            from status_indexer.state s) s;

-- The runs whose stored status is not exact in this snapshot: those with an event in the queue, and
-- those whose deadline has passed. Usually there are none. Every other run's status is the column's.
--
-- `publish_read_bounds` publishes a range of time in which no deadline passes. Only outside this range
-- deadlines are read.
--
-- SECURITY DEFINER, so that a reader of the view needs no privilege on the indexer's tables.
create function status_indexer.pending(
  -- Only the runs of this flow; null for all.
  only_flow text default null,
  -- Whether to raise an error while statuses may not be read; otherwise no run is returned then.
  refuse    boolean default true
)
returns table (flow_id text, run_number bigint)
language plpgsql stable security definer rows 10
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
#variable_conflict use_column
declare
  now_secs numeric;
  s        record;
begin
  select * into s from status_indexer.read_state;
  now_secs := s.now_secs;

  if s.column_is_exact then
    return;
  end if;

  if s.valid_since is null then
    if status_indexer.is_readable(s.valid_since) then
      return query
        select r.flow_id::text, r.run_number::bigint
          from {{runs}} r
         where only_flow is null or r.flow_id = only_flow;
    elsif refuse then
      raise exception using
        errcode = 'object_not_in_prerequisite_state',
        message = 'the statuses of runs are not available: the column run_status is not valid',
        hint = 'Wait until `status-indexer run` or `status-indexer backfill` has compared all runs.';
    end if;
    return;
  end if;

  return query
    select q.flow_id, q.run_number
      from status_indexer.queued(only_flow) q
     union
    select t.flow_id, t.run_number
      from status_indexer.timers t
     where not s.no_deadline
       and t.due_secs <= now_secs
       and (only_flow is null or t.flow_id = only_flow)
     union
    select r.flow_id::text, r.run_number::bigint
      from {{runs}} r
     where not s.no_deadline
       and r.run_status = 'running'
       and (only_flow is null or r.flow_id = only_flow)
       and not status_indexer.in_range(r.last_heartbeat_ts::bigint, now_secs, s.cutoff_secs)
       -- `publish_read_bounds` has read the evidence of runs with an earlier deadline: they are being retried.
       and (now_secs >= s.deadlines_from_secs
            and status_indexer.next_change('heartbeat', r.last_heartbeat_ts::bigint, now_secs, s.cutoff_secs)
                  < s.deadlines_until_secs) is not true;
end
$$;

-- The status of one run by the definition, and when it ended, for the runs that `pending` names. If the
-- server cannot evaluate a run, for example because a row is damaged, the run keeps what is stored.
create function status_indexer.status_now(
  flow_id         text,
  run_number      bigint,
  heartbeat       bigint,
  out status      text,
  out finished_at bigint
)
language plpgsql stable security definer cost 1000
set search_path = pg_catalog, pg_temp
set jit = off
-- Planning again takes longer than evaluating one run.
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_variable
begin
  select status_indexer.status(x.reason), status_indexer.finished_at(x.reason, x.ok_ts, heartbeat)
    into status, finished_at
    from (select status_indexer.reason(e.ok, e.ok_ts, e.retry_ts, heartbeat, c.now_secs, s.cutoff_secs) as reason,
                 e.ok_ts
            from status_indexer.state s
           cross join status_indexer.evaluation_clock() c (now_secs)
           cross join status_indexer.evidence(flow_id, run_number) e
          offset 0) x;
exception when others then
  select r.run_status, r.run_finished_at
    into status, finished_at
    from {{runs}} r
   where r.flow_id = status_now.flow_id
     and r.run_number = status_now.run_number;
end
$$;

-- When the end step's newest `attempt_ok` was written, milliseconds since the epoch; null without one. In
-- PL/pgSQL, because the planner would put the text of an SQL function into every statement that calls it.
-- Not parallel safe: otherwise the planner takes the cost of calling it for many runs as a reason to start
-- workers for a page, which takes longer than the page.
create function status_indexer.newest_ok_ts(flow_id text, run_number bigint) returns bigint
language plpgsql stable cost 1000
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select o.ok_ts from status_indexer.newest_attempt_ok(flow_id, run_number) o);
end
$$;

{{view}}
