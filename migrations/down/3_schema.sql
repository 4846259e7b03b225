-- Everything of the indexer's own. No cascade: what others have put in the schema stops it.
drop view if exists status_indexer.run_status;
drop function if exists status_indexer.enqueue_evidence();
drop function if exists status_indexer.enqueue_row();
drop function if exists status_indexer.enqueue(text, bigint);
drop function if exists status_indexer.enqueue_changed();
drop function if exists status_indexer.wake();
drop function if exists status_indexer.listening();
drop function if exists status_indexer.explain(text, text);
drop function if exists status_indexer.skip(text, bigint, integer);
drop function if exists status_indexer.compare(text, bigint, integer, boolean);
drop function if exists status_indexer.due(double precision, boolean);
drop function if exists status_indexer.move_pending();
drop function if exists status_indexer.drain(bigint, integer, integer);
drop function if exists status_indexer.apply(text[], bigint[], timestamptz[]);
drop function if exists status_indexer.evidence_between(text, bigint, bigint);
drop function if exists status_indexer.evidence(text, bigint);
drop function if exists status_indexer.is_field(text, text);
drop function if exists status_indexer.value_of(bigint);
drop function if exists status_indexer.reason(boolean, bigint, bigint, bigint, numeric, bigint);
drop function if exists status_indexer.status(text);
drop function if exists status_indexer.read_boolean(anyelement);
drop function if exists status_indexer.parse_boolean(text);
drop function if exists status_indexer.clock();
drop function if exists status_indexer.cutoff();
drop function if exists status_indexer.believable();
drop sequence if exists status_indexer.quiet_until;
drop table if exists status_indexer.grants;
drop table if exists status_indexer.state;
drop table if exists status_indexer.timers;
drop table if exists status_indexer.queue;
drop table if exists status_indexer.schema_history;
do $$
begin
  -- A schema that an operator made is the operator's to drop.
  if not {{schema_was_there}} then
    drop schema if exists status_indexer;
  end if;
end
$$;
