-- What a status is. Everything that judges a run, be it to write, to verify or to explain,
-- goes through `evidence`, `reason` and `status`; there is no second definition.

-- A boolean as PostgreSQL reads it, or null where it would raise.
create function status_indexer.parse_boolean(value text) returns boolean
language sql immutable parallel safe as $$
  select case lower(btrim(value, E' \t\n\x0b\f\r'))
           when 'true' then true
           when 'false' then false
           when 't' then true
           when 'tr' then true
           when 'tru' then true
           when 'y' then true
           when 'ye' then true
           when 'yes' then true
           when 'on' then true
           when '1' then true
           when 'f' then false
           when 'fa' then false
           when 'fal' then false
           when 'fals' then false
           when 'n' then false
           when 'no' then false
           when 'of' then false
           when 'off' then false
           when '0' then false
         end
$$;

-- The same of a metadata row's value, be its column text or jsonb, or changed from one to the other
-- later: `->> 0` unwraps a jsonb scalar. What clients write is told without that detour.
create function status_indexer.read_boolean(value anyelement) returns boolean
language sql stable parallel safe as $$
  select case value::text
           when 'True' then true
           when 'False' then false
           else status_indexer.parse_boolean(to_jsonb(value) ->> 0)
         end
$$;

-- The first rule that holds, by its name. `now_secs` is numeric, so that neither a heartbeat at
-- the end of int8 nor a fraction of a second is lost. These functions are inlined; hence `case x
-- when`, which computes x once.
create function status_indexer.reason(
  ok            boolean,
  ok_ts         bigint,
  retry_ts      bigint,
  heartbeat     bigint,
  now_secs      numeric,
  cutoff_secs   bigint
) returns text
language sql immutable parallel safe as $$
  select case ok
           when true then 'end_succeeded'
           when false then case when retry_ts > ok_ts then 'retrying' else 'end_failed' end
           else case
             when abs(now_secs - heartbeat) <= cutoff_secs then 'heartbeat'
             when heartbeat is not null then 'heartbeat_lost'
             else 'no_heartbeat'
           end
         end
$$;

create function status_indexer.status(reason text) returns text
language sql immutable parallel safe as $$
  select case reason
           when 'retrying' then 'running'
           when 'heartbeat' then 'running'
           when 'end_succeeded' then 'completed'
           else 'failed'
         end
$$;

-- Says again what an index has found. Its cost is a lie, told to the planner: a plan that has to ask
-- it of every metadata row of a run looks as dear as it can become.
create function status_indexer.is_field(field_name text, wanted text) returns boolean
language plpgsql immutable parallel safe cost 1000 as $$
begin
  return field_name = wanted;
end
$$;

-- What the end step's newest `attempt_ok` says, and when its newest `attempt` began, which counts
-- only after a failure. `ok` is null where the value is no boolean.
--
-- The form of the query keeps the planner on metadata_v3_akey, and off an index on (flow_id,
-- run_number, ts_epoch), where it would read every metadata row of the run. That is where
-- `order by ts_epoch desc limit 1` lures it, a plain `max(ts_epoch)`, which it takes for the same,
-- and one look-up of both fields, whose cost it overrates. Where statistics say that runs have few
-- rows the two indexes look alike: the order asked for comes for free from the right one alone, and
-- `is_field` is asked of fewer rows there.
create function status_indexer.evidence(flow_id text, run_number bigint)
returns table (ok boolean, ok_ts bigint, ok_id bigint, retry_ts bigint)
language sql stable parallel safe as $$
  select case newest.ok[3] when 1 then true when 0 then false end,
         newest.ok[1],
         newest.ok[2],
         case newest.ok[3]
           when 0 then (select (max(array[a.ts_epoch]))[1]
                          from (select m.ts_epoch
                                  from {{metadata}} m
                                 where m.flow_id = evidence.flow_id
                                   and m.run_number = evidence.run_number
                                   and m.step_name = 'end'
                                   and m.field_name = 'attempt'
                                   and status_indexer.is_field(m.field_name, 'attempt')
                                 order by m.task_id) a)
         end
    from (select max(array[a.ts_epoch, a.id, case status_indexer.read_boolean(a.value)
                                               when true then 1
                                               when false then 0
                                             end]) as ok
            from (select m.ts_epoch, m.id, m.value
                    from {{metadata}} m
                   where m.flow_id = evidence.flow_id
                     and m.run_number = evidence.run_number
                     and m.step_name = 'end'
                     and m.field_name = 'attempt_ok'
                     and status_indexer.is_field(m.field_name, 'attempt_ok')
                   order by m.task_id) a) newest
$$;

-- The same for a range of a flow's runs, both ends included, those with an `attempt_ok` alone: one
-- look at a stretch of metadata_v3_akey instead of one a run. It passes by every index entry of the
-- runs, so it is for runs with few metadata rows. The newest `attempt`, which is a look more for each
-- run that failed, is left to those who need it.
create function status_indexer.evidence_between(flow_id text, low bigint, high bigint)
returns table (run_number bigint, ok boolean, ok_ts bigint, ok_id bigint)
language sql stable parallel safe as $$
  select newest.run_number,
         case newest.ok[3] when 1 then true when 0 then false end,
         newest.ok[1],
         newest.ok[2]
    from (select m.run_number::bigint,
                 max(array[m.ts_epoch, m.id, case status_indexer.read_boolean(m.value)
                                               when true then 1
                                               when false then 0
                                             end]) as ok
            from {{metadata}} m
           where m.flow_id = evidence_between.flow_id
             and m.run_number between low and high
             and m.step_name = 'end'
             and m.field_name = 'attempt_ok'
           group by m.run_number) newest
$$;

-- The text of one metadata row, for people: up to 80 characters. A jsonb value that has no text in
-- it is shown as it stands.
create function status_indexer.value_of(id bigint) returns text
language sql stable parallel safe as $$
  select left(coalesce(to_jsonb(m.value) ->> 0, to_jsonb(m.value)::text), 80)
    from {{metadata}} m
   where m.id = value_of.id
$$;

-- The database's clock, seconds since the epoch. `now()` stands still inside a transaction.
create function status_indexer.clock() returns numeric
language sql volatile parallel safe as $$
  select extract(epoch from clock_timestamp())::numeric
$$;

create function status_indexer.cutoff() returns bigint
language sql stable parallel safe as $$
  select cutoff_secs from status_indexer.state
$$;

create function status_indexer.believable() returns boolean
language sql stable parallel safe as $$
  select believable_since is not null from status_indexer.state
$$;

-- For readers in plain SQL: null while the column is not to be believed. The state is read here and
-- not by a function, so that a reader needs a grant on the view and on nothing else.
create view status_indexer.run_status as
  select r.flow_id,
         r.run_number,
         case when (select s.believable_since is not null from status_indexer.state s) then r.run_status end as run_status
    from {{runs}} r;
