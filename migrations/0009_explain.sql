-- Why one run has its status: the evidence, the rule that decided, what is stored, and when time
-- alone can change it. `run` is the run's number, or its run_id where one is set. Null where there
-- is no such run. Times of evidence are milliseconds, those of heartbeats and deadlines seconds.
create function status_indexer.explain(flow_id text, run text) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  clock_secs numeric := status_indexer.clock();
  cutoff     bigint := status_indexer.cutoff();
  chosen     record;
  answer     jsonb;
begin
  -- Each of the two by its own index. A number that is too long for one is only a run_id.
  select r.flow_id::text, r.run_number::bigint, r.run_id, r.run_status, r.last_heartbeat_ts as heartbeat
    into chosen
    from {{runs}} r
   where r.flow_id = explain.flow_id
     and r.run_number = case when explain.run ~ '^-?[0-9]{1,18}$' then explain.run::bigint end
     and r.run_number::text = explain.run;
  if not found then
    select r.flow_id::text, r.run_number::bigint, r.run_id, r.run_status, r.last_heartbeat_ts as heartbeat
      into chosen
      from {{runs}} r
     where r.flow_id = explain.flow_id
       and r.run_id = explain.run;
  end if;
  if not found then
    return null;
  end if;

  with found as materialized (
    -- Sorted afterwards: with the limit in the same query the planner is lured into the index on
    -- ts_epoch, where it reads every metadata row of the run.
    select m.id, m.task_id, m.field_name, to_jsonb(m.value) ->> 0 as value, m.ts_epoch
      from {{metadata}} m
     where m.flow_id = chosen.flow_id
       and m.run_number = chosen.run_number
       and m.step_name = 'end'
       and m.field_name in ('attempt', 'attempt_ok')
  ), rows as (
    select *
      from found
     order by ts_epoch desc, id desc
     limit 100
  ), judged as (
    select chosen.flow_id,
           chosen.run_number,
           chosen.run_id,
           chosen.run_status,
           chosen.heartbeat,
           e.*,
           status_indexer.value_of(e.ok_id) as ok_value,
           status_indexer.reason(e.ok, e.ok_ts, e.retry_ts, chosen.heartbeat, clock_secs, cutoff) as reason
      from status_indexer.evidence(chosen.flow_id, chosen.run_number) e
  )
  select jsonb_build_object(
           'flow_id', flow_id,
           'run_number', run_number,
           'run_id', run_id,
           'status', status_indexer.status(reason),
           'reason', reason,
           'finished_at', case
             when reason in ('end_succeeded', 'end_failed') then ok_ts::numeric
             when reason = 'heartbeat_lost' then heartbeat::numeric * 1000
           end,
           'stored', run_status,
           'agrees', run_status = status_indexer.status(reason),
           'believable', status_indexer.believable(),
           'queued', exists (select
                               from status_indexer.queue q
                              where q.flow_id = j.flow_id
                                and q.run_number = j.run_number),
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
           'at_secs', clock_secs,
           'next_change_secs', case
             when reason = 'heartbeat' then heartbeat::numeric + cutoff
             when reason = 'heartbeat_lost' and heartbeat > clock_secs then heartbeat::numeric - cutoff
           end,
           'next_status', case
             when reason = 'heartbeat' then 'failed'
             when reason = 'heartbeat_lost' and heartbeat > clock_secs then 'running'
           end)
    into answer
    from judged j;

  return answer;
end
$$;
