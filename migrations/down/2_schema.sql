-- The indexer's own objects. Without cascade: an object that somebody else created in the schema
-- stops it.
drop view if exists status_indexer.runs;
drop function if exists status_indexer.parts();
drop function if exists status_indexer.pending_runs();
drop function if exists status_indexer.newest_ok_ts(text, bigint);
drop function if exists status_indexer.status_now(text, bigint, bigint);
drop function if exists status_indexer.pending(text, boolean);
drop function if exists status_indexer.is_readable(timestamptz);
drop function if exists status_indexer.replica_age();
drop function if exists status_indexer.evaluation_clock();
drop view if exists status_indexer.read_state;
drop function if exists status_indexer.read_clock();
drop function if exists status_indexer.obstacles();
drop function if exists status_indexer.triggers_enabled();
drop function if exists status_indexer.triggers();
drop function if exists status_indexer.trigger_functions_hash();
drop function if exists status_indexer.enqueue_evidence();
drop function if exists status_indexer.enqueue_inserted(jsonb);
drop function if exists status_indexer.enqueue_changed();
drop function if exists status_indexer.evidence_of(jsonb);
drop function if exists status_indexer.enqueue_run();
drop function if exists status_indexer.enqueue(text, bigint);
drop function if exists status_indexer.notify_worker();
drop function if exists status_indexer.explain(text, text);
drop function if exists status_indexer.key_after(text, bigint, integer);
drop function if exists status_indexer.compare_each(text, bigint, integer, boolean);
drop function if exists status_indexer.compare(text, bigint, integer, boolean);
drop function if exists status_indexer.reason_if_readable(text, bigint, bigint, numeric, bigint);
drop function if exists status_indexer.due(double precision, boolean);
drop function if exists status_indexer.publish_read_bounds(double precision, bigint, bigint);
drop function if exists status_indexer.enqueue_all_not_sendable();
drop function if exists status_indexer.enqueue_not_sendable(text[], bigint[]);
drop function if exists status_indexer.flush_pending_list();
drop function if exists status_indexer.drain(bigint, integer, integer, bigint[], boolean);
drop function if exists status_indexer.apply_each(text[], bigint[], boolean);
drop function if exists status_indexer.apply(text[], bigint[], boolean);
drop function if exists status_indexer.queued(text, bigint);
drop function if exists status_indexer.newest_attempt_ok_between(text, bigint, bigint);
drop function if exists status_indexer.evidence(text, bigint);
drop function if exists status_indexer.newest_attempt(text, bigint);
drop function if exists status_indexer.newest_attempt_ok(text, bigint);
drop function if exists status_indexer.ok_key(bigint, bigint, anyelement);
drop function if exists status_indexer.costly_equals(text, text);
drop function if exists status_indexer.evidence_text(bigint);
drop function if exists status_indexer.sendable(text);
drop function if exists status_indexer.convertible(text);
drop function if exists status_indexer.deadline_distance(text, bigint, numeric, bigint);
drop function if exists status_indexer.next_change(text, bigint, numeric, bigint);
drop function if exists status_indexer.reason(boolean, bigint, bigint, bigint, numeric, bigint);
drop function if exists status_indexer.finished_at(text, bigint, bigint);
drop function if exists status_indexer.in_range(bigint, numeric, bigint);
drop function if exists status_indexer.status(text);
drop function if exists status_indexer.read_boolean(anyelement);
drop function if exists status_indexer.parse_boolean(text);
drop function if exists status_indexer.clock();
drop function if exists status_indexer.moment(double precision);
drop function if exists status_indexer.seconds(timestamptz);
drop function if exists status_indexer.fresh_secs(bigint);
drop function if exists status_indexer.cutoff();
drop function if exists status_indexer.is_valid();
drop function if exists status_indexer.invalidate();
drop sequence if exists status_indexer.notify_suppressed_until;
drop sequence if exists status_indexer.leader_heartbeat;
drop table if exists status_indexer.grants;
drop table if exists status_indexer.state;
drop table if exists status_indexer.timers;
drop table if exists status_indexer.queue;
drop table if exists status_indexer.schema_history;
do $$
begin
  -- A schema that an operator created is left for the operator to drop.
  if not {{schema_was_there}} then
    drop schema if exists status_indexer;
  end if;
end
$$;
