-- One step of a walk over all runs in key order: judges the `batch` runs after the given key in one
-- snapshot, without locks, and returns those whose stored status differs. Reads only.
create function status_indexer.compare(
  after_flow_id    text,
  after_run_number bigint,
  batch            integer,
  -- Null where the walk has come to the end.
  out last_flow_id    text,
  out last_run_number bigint,
  out compared        integer,
  -- How many of them the definition says are completed, and failed.
  out completed       integer,
  out failed          integer,
  out at_secs         double precision,
  -- On a standby: the time of the last transaction replayed, seconds since the epoch.
  out replayed_secs   double precision,
  -- [{flow_id, run_number, stored, expected, reason, queued, ok_value, ok_ts, retry_ts,
  --   heartbeat, deadline_distance}, ...]; the distance in seconds, null where time decides nothing.
  out drift           jsonb
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
declare
  clock_secs numeric := status_indexer.clock();
  cutoff     bigint := status_indexer.cutoff();
begin
  at_secs := clock_secs;
  if pg_is_in_recovery() then
    replayed_secs := coalesce(extract(epoch from pg_last_xact_replay_timestamp()), 0);
  end if;

  with walked as materialized (
    select r.flow_id, r.run_number, r.run_status, r.last_heartbeat_ts
      from {{runs}} r
     where (r.flow_id, r.run_number) > (after_flow_id, after_run_number)
     order by r.flow_id, r.run_number
     limit batch
  ), judged as materialized (
    select w.flow_id,
           w.run_number,
           w.run_status as stored,
           w.last_heartbeat_ts as heartbeat,
           e.ok,
           e.ok_ts,
           e.ok_id,
           e.retry_ts,
           status_indexer.reason(e.ok, e.ok_ts, e.retry_ts, w.last_heartbeat_ts, clock_secs, cutoff) as reason
      from walked w
     cross join lateral status_indexer.evidence(w.flow_id, w.run_number) e
  ), named as materialized (
    select j.*, status_indexer.status(j.reason) as expected
      from judged j
  )
  select count(*),
         count(*) filter (where expected = 'completed'),
         count(*) filter (where expected = 'failed'),
         (select flow_id from walked order by flow_id desc, run_number desc limit 1),
         (select run_number from walked order by flow_id desc, run_number desc limit 1),
         jsonb_agg(jsonb_build_object(
           'flow_id', flow_id,
           'run_number', run_number,
           'stored', stored,
           'expected', expected,
           'reason', reason,
           'queued', exists (select
                               from status_indexer.queue q
                              where q.flow_id = n.flow_id
                                and q.run_number = n.run_number),
           'ok_value', coalesce(ok::text, status_indexer.value_of(ok_id)),
           'ok_ts', ok_ts,
           'retry_ts', retry_ts,
           'heartbeat', heartbeat,
           'deadline_distance', case
             when reason in ('heartbeat', 'heartbeat_lost') then abs(abs(clock_secs - heartbeat) - cutoff)
           end))
           filter (where stored <> expected)
    into compared, completed, failed, last_flow_id, last_run_number, drift
    from named n;
end
$$;
