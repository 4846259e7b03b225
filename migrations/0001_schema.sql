-- The indexer's own tables. The migrator creates the schema itself, and only where it is missing:
-- `create schema if not exists` requires CREATE on the database even where the schema exists.

-- Runs that have to be evaluated again. A trigger inserts a row in the transaction that writes the
-- evidence, so a key is in the queue if and only if its evidence is committed.
create table status_indexer.queue (
  id          bigint generated always as identity primary key,
  flow_id     text not null,
  run_number  bigint not null,
  enqueued_at timestamptz not null default clock_timestamp()
) with (
  -- The table is small and has a high turnover: vacuum it often. Never truncate it, because that
  -- takes an exclusive lock, and writers of evidence insert here.
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 5000,
  autovacuum_analyze_scale_factor = 0,
  autovacuum_analyze_threshold = 1000000,
  vacuum_truncate = false
);

-- Failed runs whose heartbeat is in the future: they become running at `due_secs`, seconds since
-- the epoch.
create table status_indexer.timers (
  flow_id     text not null,
  run_number  bigint not null,
  due_secs    bigint not null,
  primary key (flow_id, run_number)
);

-- One row: the parameters of the definition, and whether the column is valid.
create table status_indexer.state (
  singleton          boolean primary key default true check (singleton),
  -- RUN_INACTIVE_CUTOFF_TIME, seconds.
  cutoff_secs        bigint not null check (cutoff_secs > 0),
  definition_version integer not null,
  -- The version of the view and the functions for readers.
  reads_version      integer not null default 1,
  -- Whether the column run_finished_at is kept, for the listings of the web UI.
  keeps_finished_at  boolean not null default false,
  -- A scan can mark the column valid only in the generation in which it began. Generations are
  -- taken from the clock, so that a reinstalled schema never reuses one.
  generation         bigint not null default (extract(epoch from clock_timestamp()) * 1000000)::bigint,
  -- Null while the column is not valid.
  valid_since        timestamptz,
  -- The checkpoint of the scan over all runs (a backfill or a reconciliation pass): the last key
  -- compared, and what was done so far.
  scan_flow_id       text,
  scan_run_number    bigint,
  scan_started_at    timestamptz,
  scan_compared      bigint not null default 0,
  scan_corrected     bigint not null default 0,
  -- A daemon that is configured with other tables is refused.
  runs_table         text not null,
  metadata_table     text not null,
  -- `trigger_functions_hash()` as installed.
  trigger_functions  text,
  -- From the first of these times until before the second, time changes no status of a run that has no row
  -- in the queue. Null before they are known. Timestamps, because every read compares them with its own.
  deadlines_from     timestamptz,
  deadlines_until    timestamptz,
  -- The queue has no row with a lower id.
  first_queue_id     bigint not null default 0,
  -- Counts the changes of these three, so that none is based on an outdated reading.
  read_bounds_version bigint not null default 0
);

-- For the readers of the view and the callers of `is_valid()`.
grant select (valid_since) on status_indexer.state to public;

-- Privileges that `migrate --grant-to` added: `migrate down` revokes these and no others.
create table status_indexer.grants (
  grantee        text not null,
  object         text not null,
  privilege      text not null,
  primary key (grantee, object, privilege)
);

-- The time (milliseconds since the epoch) until which the worker polls and writers do not notify
-- it. A sequence, because it is read and written in place: a table row updated this often would
-- leave dead versions for as long as any transaction holds an old snapshot.
create sequence status_indexer.notify_suppressed_until minvalue 0 start 0;

-- When the leader last renewed its heartbeat (milliseconds since the epoch), once a second. A follower
-- that sees an old one leads without the lock: the server process that holds the lock may be frozen.
create sequence status_indexer.leader_heartbeat minvalue 0 start 0;

-- Marks the column as not valid. A new generation begins, so no scan in progress can mark it valid;
-- the next scan starts at the first run. Call it after changing evidence while triggers were
-- disabled. Returns the new generation.
create function status_indexer.invalidate() returns bigint
language sql volatile as $$
  update status_indexer.state
     set generation = greatest(generation + 1, (extract(epoch from clock_timestamp()) * 1000000)::bigint),
         valid_since = null,
         scan_flow_id = null,
         scan_run_number = null,
         scan_started_at = null,
         scan_compared = 0,
         scan_corrected = 0,
         deadlines_from = null,
         deadlines_until = null,
         first_queue_id = 0,
         read_bounds_version = read_bounds_version + 1
  returning generation
$$;

insert into status_indexer.state (cutoff_secs, definition_version, runs_table, metadata_table)
values ({{cutoff_secs}}, 1, {{runs_literal}}, {{metadata_literal}});
