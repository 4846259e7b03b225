-- The definition of a status. Everything that evaluates a run, whether to write, verify or explain
-- its status, uses the functions `evidence` (or its parts `newest_attempt_ok` and
-- `newest_attempt`), `reason`, `status` and `next_change`. All of them are inlined.

-- A boolean as PostgreSQL reads it, or null where PostgreSQL would raise an error.
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

-- The same for a metadata row's value, whose column may be text or jsonb, and may be changed from
-- one to the other later: `->> 0` unwraps a jsonb scalar. The two values that clients write are
-- compared first, without that conversion.
create function status_indexer.read_boolean(value anyelement) returns boolean
language sql stable parallel safe as $$
  select case value::text
           when 'True' then true
           when 'False' then false
           else status_indexer.parse_boolean(to_jsonb(value) ->> 0)
         end
$$;

-- Whether a heartbeat is within the cutoff of the clock, on either side. `now_secs` is numeric, so
-- that neither a heartbeat at the limits of int8 nor a fraction of a second is lost.
create function status_indexer.in_range(heartbeat bigint, now_secs numeric, cutoff_secs bigint) returns boolean
language sql immutable parallel safe as $$
  select abs(now_secs - heartbeat) <= cutoff_secs
$$;

-- The name of the first rule that holds. `case x when` computes x once, although the function is
-- inlined.
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
             when status_indexer.in_range(heartbeat, now_secs, cutoff_secs) then 'heartbeat'
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

-- When the run ended, milliseconds since the epoch; null while it is running, and where its end is not
-- known. A heartbeat whose milliseconds exceed a bigint counts as not known.
create function status_indexer.finished_at(reason text, ok_ts bigint, heartbeat bigint) returns bigint
language sql immutable parallel safe as $$
  select case reason
           when 'end_succeeded' then ok_ts
           when 'end_failed' then ok_ts
           when 'heartbeat_lost' then case
             when heartbeat between -9000000000000000 and 9000000000000000 then heartbeat * 1000
           end
         end
$$;

-- When time next changes a run's status, seconds since the epoch; null where time does not change
-- it. A heartbeat in range expires, and a heartbeat ahead of the clock comes into range.
create function status_indexer.next_change(
  reason        text,
  heartbeat     bigint,
  now_secs      numeric,
  cutoff_secs   bigint
) returns numeric
language sql immutable parallel safe as $$
  select case reason
           when 'heartbeat' then heartbeat::numeric + cutoff_secs
           when 'heartbeat_lost' then case when heartbeat > now_secs then heartbeat::numeric - cutoff_secs end
         end
$$;

-- Seconds between the clock and the nearer end of the range; null where no heartbeat decides.
create function status_indexer.deadline_distance(
  reason        text,
  heartbeat     bigint,
  now_secs      numeric,
  cutoff_secs   bigint
) returns numeric
language sql immutable parallel safe as $$
  select case
           when reason in ('heartbeat', 'heartbeat_lost') then abs(abs(now_secs - heartbeat) - cutoff_secs)
         end
$$;

-- Equality with an inflated cost. It repeats a condition that the right index has already checked.
-- A plan that has to evaluate it for every metadata row of a run becomes expensive enough for the
-- planner to reject it.
create function status_indexer.costly_equals(field_name text, wanted text) returns boolean
language plpgsql immutable parallel safe cost 1000 as $$
begin
  return field_name = wanted;
end
$$;

-- An `attempt_ok` in the form that `max` compares: its time, its id (the later of two rows with the
-- same time has the higher id), and its value as 1 or 0, or null where it is not a boolean.
create function status_indexer.ok_key(ts_epoch bigint, id bigint, value anyelement) returns bigint[]
language sql stable parallel safe as $$
  select array[ts_epoch, id, status_indexer.read_boolean(value)::integer]
$$;

-- The end step's newest `attempt_ok`; `ok` is null where there is none or its value is not a
-- boolean.
--
-- The form of this query and of the next one keeps the planner on metadata_v3_akey, and off an
-- index on (flow_id, run_number, ts_epoch), with which it would read every metadata row of the run.
-- Three simpler forms lead the planner to that index: `order by ts_epoch desc limit 1`, a plain
-- `max(ts_epoch)`, which it treats as the same, and a single look-up of both fields, whose cost it
-- overestimates. Where statistics suggest that runs have few metadata rows, the two indexes look
-- equally good. Two things then favor metadata_v3_akey: only that index returns the rows in the
-- order of `order by`, and `costly_equals` is evaluated for fewer rows.
create function status_indexer.newest_attempt_ok(flow_id text, run_number bigint)
returns table (ok boolean, ok_ts bigint, ok_id bigint)
language sql stable parallel safe as $$
  select newest.ok[3] = 1,
         newest.ok[1],
         newest.ok[2]
    from (select max(status_indexer.ok_key(a.ts_epoch::bigint, a.id::bigint, a.value)) as ok
            from (select m.ts_epoch, m.id, m.value
                    from {{metadata}} m
                   where m.flow_id = newest_attempt_ok.flow_id
                     and m.run_number = newest_attempt_ok.run_number
                     and m.step_name = 'end'
                     and m.field_name = 'attempt_ok'
                     and status_indexer.costly_equals(m.field_name, 'attempt_ok')
                   order by m.task_id) a) newest
$$;

-- The start time of the end step's newest `attempt`. It matters only after a failure: call it in a
-- `case`, as `evidence` does, because it reads the index once more for each run.
create function status_indexer.newest_attempt(flow_id text, run_number bigint)
returns table (ts_epoch bigint)
language sql stable parallel safe as $$
  select (max(array[a.ts_epoch::bigint]))[1]
    from (select m.ts_epoch
            from {{metadata}} m
           where m.flow_id = newest_attempt.flow_id
             and m.run_number = newest_attempt.run_number
             and m.step_name = 'end'
             and m.field_name = 'attempt'
             and status_indexer.costly_equals(m.field_name, 'attempt')
           order by m.task_id) a
$$;

-- The evidence of one run in its metadata rows.
create function status_indexer.evidence(flow_id text, run_number bigint)
returns table (ok boolean, ok_ts bigint, ok_id bigint, retry_ts bigint)
language sql stable parallel safe as $$
  select n.ok,
         n.ok_ts,
         n.ok_id,
         case when not n.ok then
           (select a.ts_epoch
              from status_indexer.newest_attempt(evidence.flow_id, evidence.run_number) a)
         end
    from status_indexer.newest_attempt_ok(evidence.flow_id, evidence.run_number) n
$$;

-- `newest_attempt_ok` for a range of a flow's runs, both ends included; runs without an `attempt_ok`
-- are left out. It reads one range of metadata_v3_akey instead of one range per run. Because it
-- passes every index entry of these runs, it suits runs with few metadata rows.
create function status_indexer.newest_attempt_ok_between(flow_id text, low bigint, high bigint)
returns table (run_number bigint, ok boolean, ok_ts bigint, ok_id bigint)
language sql stable parallel safe as $$
  select newest.run_number,
         newest.ok[3] = 1,
         newest.ok[1],
         newest.ok[2]
    from (select m.run_number::bigint,
                 max(status_indexer.ok_key(m.ts_epoch::bigint, m.id::bigint, m.value)) as ok
            from {{metadata}} m
           where m.flow_id = newest_attempt_ok_between.flow_id
             and m.run_number between low and high
             and m.step_name = 'end'
             and m.field_name = 'attempt_ok'
           group by m.run_number) newest
$$;

-- A text that the server can send to a client. In a database whose encoding is not UTF8 a text may
-- have bytes that cannot be converted; then every character that is not ASCII is replaced.
-- Not parallel safe, because an exception block is a subtransaction.
create function status_indexer.convertible(value text) returns text
language plpgsql stable as $$
begin
  perform convert_to(value, 'UTF8');
  return value;
exception when others then
  return regexp_replace(value, '[^\x01-\x7f]', '?', 'g');
end
$$;

create function status_indexer.sendable(value text) returns text
language sql stable as $$
  select case when getdatabaseencoding() = 'UTF8' then value else status_indexer.convertible(value) end
$$;

-- The value of one metadata row as text, for display: up to 80 characters. A jsonb value without a
-- text of its own (null, an object) is shown as JSON.
create function status_indexer.evidence_text(id bigint) returns text
language sql stable as $$
  select status_indexer.sendable(left(coalesce(to_jsonb(m.value) ->> 0, to_jsonb(m.value)::text), 80))
    from {{metadata}} m
   where m.id = evidence_text.id
$$;

-- A time in seconds since the epoch, to the microsecond. Before PostgreSQL 14 `extract` returns double
-- precision, whose conversion to numeric keeps 15 digits only; microseconds as an integer keep all of them.
create function status_indexer.seconds(moment timestamptz) returns numeric
language sql immutable parallel safe as $$
  select (extract(epoch from moment) * 1000000)::bigint * 0.000001
$$;

-- The same in the other direction. No time is later than the end of the year 9999: the type could not
-- hold it.
create function status_indexer.moment(secs double precision) returns timestamptz
language sql immutable strict parallel safe as $$
  select to_timestamp(least(secs, 253402300799))
$$;

-- The database's clock, seconds since the epoch. `now()` does not advance during a transaction.
create function status_indexer.clock() returns numeric
language sql volatile parallel safe as $$
  select status_indexer.seconds(clock_timestamp())
$$;

create function status_indexer.cutoff() returns bigint
language sql stable parallel safe as $$
  select cutoff_secs from status_indexer.state
$$;

-- The age (seconds) up to which a heartbeat counts as fresh: a run with an older one may be evaluated
-- or inserted at any time, but then it is recorded. More than the 5 s of `enqueue_run`, and more than
-- the interval between a client's heartbeats where the cutoff permits it.
create function status_indexer.fresh_secs(cutoff_secs bigint) returns bigint
language sql immutable parallel safe as $$
  select greatest(6, least(30, cutoff_secs / 2))
$$;

create function status_indexer.is_valid() returns boolean
language sql stable parallel safe as $$
  select valid_since is not null from status_indexer.state
$$;
