-- The indexer's own tables. The schema itself is made by the migrator, which looks first:
-- `create schema if not exists` asks for CREATE on the database even where the schema is there.

-- What is waiting to be looked at again. A trigger writes a row in the transaction of the
-- evidence, so that a key is here if and only if its evidence is committed.
create table status_indexer.queue (
  id          bigint generated always as identity primary key,
  flow_id     text not null,
  run_number  bigint not null,
  enqueued_at timestamptz not null default clock_timestamp()
) with (
  -- The table is small and churns: vacuum it often, and never take the exclusive lock that
  -- gives pages back, because writers of evidence insert here.
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 5000,
  autovacuum_analyze_scale_factor = 0,
  autovacuum_analyze_threshold = 1000000,
  vacuum_truncate = false
);

-- Failed runs whose heartbeat lies in the future: they run (again) at `due_secs`, seconds since the epoch.
create table status_indexer.timers (
  flow_id     text not null,
  run_number  bigint not null,
  due_secs    bigint not null,
  primary key (flow_id, run_number)
);

-- One row: the parameters of the definition, and how far the column is to be believed.
create table status_indexer.state (
  singleton          boolean primary key default true check (singleton),
  -- RUN_INACTIVE_CUTOFF_TIME, seconds.
  cutoff_secs        bigint not null check (cutoff_secs > 0),
  definition_version integer not null,
  -- A pass over all runs blesses the column only in the generation in which it began. Numbers are
  -- taken from the clock, so that a reinstalled schema never repeats one.
  generation         bigint not null default (extract(epoch from clock_timestamp()) * 1000000)::bigint,
  believable_since   timestamptz,
  -- How far the pass over all runs has come, the first one or a later one: the last key compared,
  -- and what was done so far.
  pass_flow_id       text,
  pass_run_number    bigint,
  pass_started_at    timestamptz,
  pass_compared      bigint not null default 0,
  pass_corrected     bigint not null default 0,
  -- Names are kept to tell an operator who starts a daemon with other ones.
  runs_table         text not null,
  metadata_table     text not null
);

-- Privileges that `migrate --grant-to` added, so that `migrate down` takes back those and no other.
create table status_indexer.grants (
  grantee        text not null,
  object         text not null,
  privilege      text not null,
  primary key (grantee, object, privilege)
);

-- The moment (milliseconds since the epoch) until which the worker polls by itself, so that writers
-- need not notify it. A sequence, because it is read and written in place: a table row updated
-- this often would leave dead versions for as long as somebody holds an old snapshot.
create sequence status_indexer.quiet_until minvalue 0 start 0;

insert into status_indexer.state (cutoff_secs, definition_version, runs_table, metadata_table)
values ({{cutoff_secs}}, 1, {{runs_literal}}, {{metadata_literal}});
