-- Why a run has its status: the evidence, the rule that decided, the stored status, and when time
-- next changes it. `run` is the run's number, or its run_id where one is set. Null where there is
-- no such run. Times of evidence are in milliseconds, times of heartbeats and deadlines in seconds.
create function status_indexer.explain(flow_id text, run text) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  now_secs numeric := status_indexer.evaluation_clock();
  cutoff   bigint := status_indexer.cutoff();
  chosen   record;
  answer   jsonb;
begin
  -- One query for each of the two indexes. A number that is too long for bigint can only be a run_id.
  select r.flow_id::text, r.run_number::bigint, r.run_id::text, r.run_status, r.run_finished_at,
         r.last_heartbeat_ts::bigint as heartbeat
    into chosen
    from {{runs}} r
   where r.flow_id = explain.flow_id
     and r.run_number = case when explain.run ~ '^-?[0-9]{1,18}$' then explain.run::bigint end
     and r.run_number::text = explain.run;
  if not found then
    select r.flow_id::text, r.run_number::bigint, r.run_id::text, r.run_status, r.run_finished_at,
         r.last_heartbeat_ts::bigint as heartbeat
      into chosen
      from {{runs}} r
     where r.flow_id = explain.flow_id
       and r.run_id = explain.run;
  end if;
  if not found then
    return null;
  end if;

  with end_step as materialized (
    -- Sorted in a second step: with the limit in the same query the planner prefers the index on
    -- ts_epoch, with which it reads every metadata row of the run.
    select m.id, m.task_id, m.field_name, status_indexer.sendable(left(to_jsonb(m.value) ->> 0, 1000)) as value, m.ts_epoch
      from {{metadata}} m
     where m.flow_id = chosen.flow_id
       and m.run_number = chosen.run_number
       and m.step_name = 'end'
       and m.field_name in ('attempt', 'attempt_ok')
  ), rows as (
    select *
      from end_step
     order by ts_epoch desc, id desc
     limit 100
  ), with_reason as (
    select chosen.flow_id,
           chosen.run_number,
           chosen.run_id,
           chosen.run_status,
           chosen.run_finished_at,
           chosen.heartbeat,
           e.*,
           status_indexer.reason(e.ok, e.ok_ts, e.retry_ts, chosen.heartbeat, now_secs, cutoff) as reason
      from status_indexer.evidence(chosen.flow_id, chosen.run_number) e
  ), evaluated as (
    select r.*,
           status_indexer.status(r.reason) as status,
           status_indexer.evidence_text(r.ok_id) as ok_value,
           status_indexer.next_change(r.reason, r.heartbeat, now_secs, cutoff) as next_change
      from with_reason r
  )
  select jsonb_build_object(
           'flow_id', flow_id,
           'run_number', run_number,
           'run_id', status_indexer.sendable(run_id),
           'status', status,
           'reason', reason,
           'finished_at', case
             when reason in ('end_succeeded', 'end_failed') then ok_ts::numeric
             when reason = 'heartbeat_lost' then heartbeat::numeric * 1000
           end,
           'stored', run_status,
           'agrees', run_status = status
                     and run_finished_at is not distinct from (
                           select case when s.keeps_finished_at then status_indexer.finished_at(reason, ok_ts, heartbeat) end
                             from status_indexer.state s),
           'valid', status_indexer.is_valid(),
           'queued', exists (select from status_indexer.queued(e.flow_id::text, e.run_number::bigint)),
           'evidence', jsonb_build_object(
             'attempt_ok', ok_value,
             'attempt_ok_is_boolean', ok_id is null or ok is not null,
             'attempt_ok_ts', ok_ts,
             'attempt_ts', retry_ts,
             'last_heartbeat_ts', heartbeat,
             'rows', coalesce((select jsonb_agg(jsonb_build_object(
                                        'id', id, 'task_id', task_id, 'field_name', field_name,
                                        'value', value, 'ts_epoch', ts_epoch)
                                        order by ts_epoch desc, id desc)
                                 from rows), '[]')),
           'cutoff_secs', cutoff,
           'at_secs', now_secs,
           'replica_age_secs', status_indexer.replica_age(),
           'next_change_secs', next_change,
           'next_status', case
             when next_change is not null then case reason when 'heartbeat' then 'failed' else 'running' end
           end)
    into answer
    from evaluated e;

  return answer;
end
$$;
