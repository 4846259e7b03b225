-- Which runs time alone may have changed, and when it next can. Reads only; `apply` decides.
--
-- `since_secs` null takes every run whose stored status may be out of date by time: all stale
-- running ones, and the failed ones whose heartbeat is in range (after a step of the clock). Else
-- only deadlines in (since_secs, now], so that retrying runs are not looked at for ever; and where
-- `jumps` is asked for, the running runs whose heartbeat leapt out of range, back, ahead or away,
-- which no trigger tells: all that are out of range and not retrying. That reads the evidence of
-- the retrying ones, and is for now and then.
create function status_indexer.due(
  since_secs     double precision,
  jumps          boolean,
  out at_secs    double precision,
  out running    bigint,
  out flow_ids   text[],
  out run_numbers bigint[],
  -- The deadline that passed, seconds since the epoch, one a run.
  out deadlines  double precision[],
  out next_deadline double precision
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

  with watched as (
    select r.flow_id,
           r.run_number,
           r.last_heartbeat_ts::numeric as heartbeat,
           abs(clock_secs - r.last_heartbeat_ts) <= cutoff as fresh,
           -- The one that passed in the time looked at.
           case
             when clock_secs - r.last_heartbeat_ts > cutoff
                  and (since_secs is null or r.last_heartbeat_ts::numeric + cutoff > since_secs)
               then r.last_heartbeat_ts::numeric + cutoff
           end as deadline
      from {{runs}} r
     where r.run_status = 'running'
  ), judged as (
    select w.flow_id,
           w.run_number,
           w.heartbeat,
           w.fresh,
           case
             when w.fresh or w.deadline is not null then w.deadline
             when since_secs is null then clock_secs
             when jumps and exists (
                    select
                      from status_indexer.evidence(w.flow_id, w.run_number) e
                     where status_indexer.reason(e.ok, e.ok_ts, e.retry_ts, w.heartbeat::bigint,
                                                 clock_secs, cutoff) <> 'retrying')
               then clock_secs
           end as deadline
      from watched w
  )
  select count(*),
         array_agg(flow_id) filter (where deadline is not null),
         array_agg(run_number) filter (where deadline is not null),
         array_agg(deadline::double precision) filter (where deadline is not null),
         (min(heartbeat) filter (where fresh) + cutoff)::double precision
    into running, flow_ids, run_numbers, deadlines, next_deadline
    from judged;

  select flow_ids || coalesce(array_agg(t.flow_id) filter (where t.due_secs <= clock_secs), '{}'),
         run_numbers || coalesce(array_agg(t.run_number) filter (where t.due_secs <= clock_secs), '{}'),
         deadlines || coalesce(array_agg(t.due_secs::double precision) filter (where t.due_secs <= clock_secs), '{}'),
         least(next_deadline, (min(t.due_secs) filter (where t.due_secs > clock_secs))::double precision)
    into flow_ids, run_numbers, deadlines, next_deadline
    from status_indexer.timers t;

  if since_secs is null then
    select flow_ids || coalesce(array_agg(r.flow_id), '{}'),
           run_numbers || coalesce(array_agg(r.run_number::bigint), '{}'),
           deadlines || coalesce(array_agg(clock_secs::double precision), '{}')
      into flow_ids, run_numbers, deadlines
      from {{runs}} r
     where r.run_status = 'failed'
       and abs(clock_secs - r.last_heartbeat_ts) <= cutoff;
  end if;
end
$$;
