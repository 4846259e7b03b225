-- What a status is. Everything that judges a run, be it to write, to verify or to explain,
-- goes through `evidence`, `reason` and `status`; there is no second definition.

-- A boolean as PostgreSQL reads it, or null where it would raise.
create function status_indexer.parse_boolean(value text) returns boolean
language sql immutable parallel safe as $$
  select case
           when lower(btrim(value, E' \t\n\x0b\f\r'))
                in ('t', 'tr', 'tru', 'true', 'y', 'ye', 'yes', 'on', '1') then true
           when lower(btrim(value, E' \t\n\x0b\f\r'))
                in ('f', 'fa', 'fal', 'fals', 'false', 'n', 'no', 'of', 'off', '0') then false
         end
$$;

-- The first rule that holds, by its name. `now_secs` is numeric, so that neither a heartbeat at
-- the end of int8 nor a fraction of a second is lost.
create function status_indexer.reason(
  ok            boolean,
  ok_ts         bigint,
  retry_ts      bigint,
  heartbeat     bigint,
  now_secs      numeric,
  cutoff_secs   bigint
) returns text
language sql immutable parallel safe as $$
  select case
           when not ok and retry_ts > ok_ts then 'retrying'
           when ok then 'end_succeeded'
           when not ok then 'end_failed'
           when abs(now_secs - heartbeat) <= cutoff_secs then 'heartbeat'
           when heartbeat is not null then 'heartbeat_lost'
           else 'no_heartbeat'
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

-- The newest `attempt_ok` and `attempt` of a run's end step. `to_jsonb(value) ->> 0` reads a text
-- column and a jsonb column alike, also if the column is changed from one to the other later.
-- An aggregate, not `order by ... limit 1`: that one lures the planner into the index on ts_epoch,
-- where it reads every metadata row of the run.
create function status_indexer.evidence(flow_id text, run_number bigint)
returns table (ok_value text, ok_ts bigint, retry_ts bigint)
language sql stable parallel safe as $$
  select (array_agg(to_jsonb(m.value) ->> 0 order by m.ts_epoch desc, m.id desc)
            filter (where m.field_name = 'attempt_ok'))[1],
         max(m.ts_epoch) filter (where m.field_name = 'attempt_ok'),
         max(m.ts_epoch) filter (where m.field_name = 'attempt')
    from {{metadata}} m
   where m.flow_id = evidence.flow_id
     and m.run_number = evidence.run_number
     and m.step_name = 'end'
     and m.field_name in ('attempt', 'attempt_ok')
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

-- For readers in plain SQL: null while the column is not to be believed.
create view status_indexer.run_status as
  select r.flow_id,
         r.run_number,
         case when status_indexer.believable() then r.run_status end as run_status
    from {{runs}} r;
