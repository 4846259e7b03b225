-- One step of a scan over all runs in key order: evaluates the `batch` runs after the given key in
-- one snapshot, without locks, and returns those whose stored status differs. It only reads.
create function status_indexer.compare(
  after_flow_id    text,
  after_run_number bigint,
  batch            integer,
  -- Whether to return the reasons of the differences. To evaluate these runs again, their keys are
  -- enough.
  reasons          boolean default true,
  -- Null at the end of the scan.
  out last_flow_id    text,
  out last_run_number bigint,
  out compared        integer,
  -- How many of them are completed and failed by the definition; null without `reasons`.
  out completed       integer,
  out failed          integer,
  out at_secs         double precision,
  -- On a standby: the time of the last transaction replayed, seconds since the epoch.
  out replayed_secs   double precision,
  -- The runs that differ.
  out flow_ids        text[],
  out run_numbers     bigint[],
  -- The same as [{flow_id, run_number, stored, expected, reason, stored_finished_at, finished_at, queued,
  --   ok_value, ok_ts, retry_ts, heartbeat, deadline_distance}, ...], with `reasons`; the distance in seconds, null where no
  -- heartbeat decides.
  out drift           jsonb
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
-- A merge join would sort both sides by text.
set enable_mergejoin = off
-- A generic plan does not know the limit and estimates a step as a tenth of the table: with less
-- memory it would join through temporary files.
set work_mem = '32MB'
as $$
#variable_conflict use_column
declare
  now_secs numeric := status_indexer.clock();
  cutoff   bigint := status_indexer.cutoff();
  keeps_finish boolean := (select s.keeps_finished_at from status_indexer.state s);
  -- Where runs have many metadata rows, each run's evidence is looked up separately.
  by_range boolean := (select m.reltuples <= 100 * greatest(r.reltuples, 1)
                         from status_indexer.state s
                         join pg_class r on r.oid = to_regclass(s.runs_table)
                         join pg_class m on m.oid = to_regclass(s.metadata_table));
  -- Runs whose flow cannot be sent to a client are left out: the scan could not continue after them.
  all_sendable boolean := getdatabaseencoding() = 'UTF8';
begin
  at_secs := now_secs;
  if pg_is_in_recovery() then
    replayed_secs := coalesce(extract(epoch from pg_last_xact_replay_timestamp()), 0);
  end if;

  with step as materialized (
    select r.flow_id, r.run_number, r.run_status, r.run_finished_at, r.last_heartbeat_ts
      from {{runs}} r
     where (r.flow_id, r.run_number) > (after_flow_id, after_run_number)
       and (all_sendable or status_indexer.convertible(r.flow_id) = r.flow_id)
     order by r.flow_id, r.run_number
     limit batch
  ), ranges as materialized (
    select flow_id, min(run_number) as low, max(run_number) as high
      from step
     group by flow_id
  ), newest_ok as (
    select g.flow_id, e.run_number, e.ok, e.ok_ts, e.ok_id
      from ranges g
     cross join lateral status_indexer.newest_attempt_ok_between(g.flow_id, g.low, g.high) e
     where by_range
     union all
    select s.flow_id, s.run_number, e.ok, e.ok_ts, e.ok_id
      from step s
     cross join lateral status_indexer.newest_attempt_ok(s.flow_id, s.run_number) e
     where not by_range
  ), with_evidence as (
    -- `offset 0` here and below: the planner evaluates each expression once, instead of copying it
    -- to every use of its name.
    select s.flow_id,
           s.run_number,
           s.run_status as stored,
           s.run_finished_at as stored_finish,
           s.last_heartbeat_ts::bigint as heartbeat,
           e.ok,
           e.ok_ts,
           e.ok_id,
           -- As in `evidence`. Without `reasons`, a run that is stored as `completed` and whose end
           -- failed differs whether it is being retried or not.
           case when not e.ok and (reasons or s.run_status <> 'completed') then
             (select a.ts_epoch
                from status_indexer.newest_attempt(s.flow_id, s.run_number) a)
           end as retry_ts
      from step s
      left join newest_ok e on e.flow_id = s.flow_id and e.run_number = s.run_number
    offset 0
  ), with_reason as (
    select e.*,
           status_indexer.reason(e.ok, e.ok_ts, e.retry_ts, e.heartbeat, now_secs, cutoff) as reason
      from with_evidence e
    offset 0
  ), with_status as (
    select r.*,
           status_indexer.status(r.reason) as expected,
           case when keeps_finish then status_indexer.finished_at(r.reason, r.ok_ts, r.heartbeat) end as finish
      from with_reason r
    offset 0
  ), compared_runs as (
    select w.*,
           w.stored <> w.expected or w.stored_finish is distinct from w.finish as differs
      from with_status w
    offset 0
  )
  select count(*),
         case when reasons then count(*) filter (where expected = 'completed') end,
         case when reasons then count(*) filter (where expected = 'failed') end,
         (select flow_id from ranges order by flow_id desc limit 1),
         (select high from ranges order by flow_id desc limit 1),
         array_agg(flow_id) filter (where differs),
         array_agg(run_number) filter (where differs),
         jsonb_agg(jsonb_build_object(
           'flow_id', flow_id,
           'run_number', run_number,
           'stored', stored,
           'expected', expected,
           'reason', reason,
           'stored_finished_at', stored_finish,
           'finished_at', finish,
           'queued', (w.flow_id, w.run_number) in (select q.flow_id, q.run_number
                                                    from status_indexer.queued() q),
           'ok_value', case
             when ok is null and ok_id is not null then status_indexer.evidence_text(ok_id)
             else ok::text
           end,
           'ok_ts', ok_ts,
           'retry_ts', retry_ts,
           'heartbeat', heartbeat,
           'deadline_distance', status_indexer.deadline_distance(reason, heartbeat, now_secs, cutoff)))
           filter (where reasons and differs)
    into compared, completed, failed, last_flow_id, last_run_number, flow_ids, run_numbers, drift
    from compared_runs w;
end
$$;

-- The key of the last of the `batch` runs after the given key; null where there are fewer. It is
-- where the next step begins, for a scan that compares several steps at the same time.
create function status_indexer.key_after(
  after_flow_id    text,
  after_run_number bigint,
  batch            integer,
  out flow_id      text,
  out run_number   bigint
)
language sql stable as $$
  -- Before PostgreSQL 13 the types have to match exactly.
  select r.flow_id::text, r.run_number::bigint
    from {{runs}} r
   where (r.flow_id, r.run_number) > (after_flow_id, after_run_number)
     and (getdatabaseencoding() = 'UTF8' or status_indexer.sendable(r.flow_id) = r.flow_id)
   order by r.flow_id, r.run_number
  offset batch - 1
   limit 1
$$;

-- The same for each run on its own, for a step that the server has refused, for example because it
-- cannot read a damaged row: such runs are listed, and the others compared.
create function status_indexer.compare_each(
  after_flow_id    text,
  after_run_number bigint,
  batch            integer,
  reasons          boolean default true,
  out last_flow_id    text,
  out last_run_number bigint,
  out compared        integer,
  out completed       integer,
  out failed          integer,
  out at_secs         double precision,
  out replayed_secs   double precision,
  out flow_ids        text[],
  out run_numbers     bigint[],
  out drift           jsonb,
  -- [{flow_id, run_number, sqlstate, error}, ...]
  out refused         jsonb
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  one record;
begin
  last_flow_id := after_flow_id;
  last_run_number := after_run_number;
  compared := 0;
  for i in 1 .. batch loop
    begin
      select * into one from status_indexer.compare(last_flow_id, last_run_number, 1, reasons);
      at_secs := coalesce(at_secs, one.at_secs);
      replayed_secs := coalesce(replayed_secs, one.replayed_secs);
      exit when one.compared = 0;
      compared := compared + 1;
      completed := coalesce(completed, 0) + coalesce(one.completed, 0);
      failed := coalesce(failed, 0) + coalesce(one.failed, 0);
      flow_ids := flow_ids || one.flow_ids;
      run_numbers := run_numbers || one.run_numbers;
      if one.drift is not null then
        drift := coalesce(drift, '[]') || one.drift;
      end if;
      last_flow_id := one.last_flow_id;
      last_run_number := one.last_run_number;
    exception when others then
      select k.flow_id, k.run_number
        into last_flow_id, last_run_number
        from status_indexer.key_after(last_flow_id, last_run_number, 1) k;
      compared := compared + 1;
      refused := coalesce(refused, '[]') || jsonb_build_array(jsonb_build_object(
        'flow_id', last_flow_id,
        'run_number', last_run_number,
        'sqlstate', sqlstate,
        'error', status_indexer.sendable(left(sqlerrm, 200))));
    end;
  end loop;
  if compared = 0 then
    last_flow_id := null;
    last_run_number := null;
  end if;
end
$$;
