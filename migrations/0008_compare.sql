-- One step of a walk over all runs in key order: judges the `batch` runs after the given key in one
-- snapshot, without locks, and returns those whose stored status differs. Reads only.
create function status_indexer.compare(
  after_flow_id    text,
  after_run_number bigint,
  batch            integer,
  -- Whether to tell of those that differ why; else, to have them judged anew, their keys are enough.
  reasons          boolean default true,
  -- Null where the walk has come to the end.
  out last_flow_id    text,
  out last_run_number bigint,
  out compared        integer,
  -- How many of them the definition says are completed, and failed; null where reasons are not wanted.
  out completed       integer,
  out failed          integer,
  out at_secs         double precision,
  -- On a standby: the time of the last transaction replayed, seconds since the epoch.
  out replayed_secs   double precision,
  -- The runs that differ.
  out flow_ids        text[],
  out run_numbers     bigint[],
  -- The same as [{flow_id, run_number, stored, expected, reason, queued, ok_value, ok_ts, retry_ts,
  --   heartbeat, deadline_distance}, ...], where reasons are wanted; the distance in seconds, null
  -- where time decides nothing.
  out drift           jsonb
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
-- A merge would sort both sides by text.
set enable_mergejoin = off
-- A generic plan knows no limit and takes a step for a tenth of the table: with less it would join
-- by way of temporary files.
set work_mem = '32MB'
as $$
#variable_conflict use_column
declare
  clock_secs numeric := status_indexer.clock();
  cutoff     bigint := status_indexer.cutoff();
  -- Where runs have many metadata rows, each run's evidence is looked up by itself.
  thin       boolean := (select m.reltuples <= 100 * greatest(r.reltuples, 1)
                           from status_indexer.state s
                           join pg_class r on r.oid = to_regclass(s.runs_table)
                           join pg_class m on m.oid = to_regclass(s.metadata_table));
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
  ), ranges as materialized (
    select flow_id, min(run_number) as low, max(run_number) as high
      from walked
     group by flow_id
  ), found as (
    select g.flow_id, e.run_number, e.ok, e.ok_ts, e.ok_id
      from ranges g
     cross join lateral status_indexer.evidence_between(g.flow_id, g.low, g.high) e
     where thin
     union all
    select w.flow_id, w.run_number, e.ok, e.ok_ts, e.ok_id
      from walked w
     cross join lateral status_indexer.evidence(w.flow_id, w.run_number) e
     where not thin
  )
  select count(*),
         case when reasons then count(*) filter (where expected = 'completed') end,
         case when reasons then count(*) filter (where expected = 'failed') end,
         (select flow_id from ranges order by flow_id desc limit 1),
         (select high from ranges order by flow_id desc limit 1),
         array_agg(flow_id) filter (where stored <> expected),
         array_agg(run_number) filter (where stored <> expected),
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
           'ok_value', case
             when ok is null and ok_id is not null then status_indexer.value_of(ok_id)
             else ok::text
           end,
           'ok_ts', ok_ts,
           'retry_ts', retry_ts,
           'heartbeat', heartbeat,
           'deadline_distance', case
             when reason in ('heartbeat', 'heartbeat_lost') then abs(abs(clock_secs - heartbeat) - cutoff)
           end))
           filter (where reasons and stored <> expected)
    into compared, completed, failed, last_flow_id, last_run_number, flow_ids, run_numbers, drift
    -- `offset 0` keeps the planner from putting an expression's text wherever its name stands.
    from (select j.*, status_indexer.status(j.reason) as expected
            from (select i.*,
                         status_indexer.reason(i.ok, i.ok_ts, i.retry_ts, i.heartbeat, clock_secs, cutoff) as reason
                    from (select w.flow_id,
                                 w.run_number,
                                 w.run_status as stored,
                                 w.last_heartbeat_ts as heartbeat,
                                 e.ok,
                                 e.ok_ts,
                                 e.ok_id,
                                 -- As in `evidence`. Whether an end that failed is tried again is no
                                 -- question where `completed` is stored, which is wrong either way.
                                 case when not e.ok and (reasons or w.run_status <> 'completed') then
                                   (select (max(array[a.ts_epoch]))[1]
                                      from (select m.ts_epoch
                                              from {{metadata}} m
                                             where m.flow_id = w.flow_id
                                               and m.run_number = w.run_number
                                               and m.step_name = 'end'
                                               and m.field_name = 'attempt'
                                               and status_indexer.is_field(m.field_name, 'attempt')
                                             order by m.task_id) a)
                                 end as retry_ts
                            from walked w
                            left join found e on e.flow_id = w.flow_id and e.run_number = w.run_number
                          offset 0) i
                  offset 0) j
          offset 0) n;
end
$$;

-- The last of the `batch` runs after the given key; null where there are fewer. Where the step after
-- that one begins, for a walk that has several compared at the same time.
create function status_indexer.skip(
  after_flow_id    text,
  after_run_number bigint,
  batch            integer,
  out flow_id      text,
  out run_number   bigint
)
language sql stable as $$
  select r.flow_id, r.run_number
    from {{runs}} r
   where (r.flow_id, r.run_number) > (after_flow_id, after_run_number)
   order by r.flow_id, r.run_number
  offset batch - 1
   limit 1
$$;
