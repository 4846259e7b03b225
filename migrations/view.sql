-- For readers in plain SQL: `run_status` is null while the column is not valid. The view reads a
-- function instead of the table, because PostgreSQL refuses to change the type of a column that a
-- view reads. The function is inlined, so a condition on the key uses the primary key. It has the
-- columns' types of the time of the migration; `migrate up` creates both again where these changed.
create function status_indexer.run_statuses()
returns table (flow_id {{flow_id_type}}, run_number {{run_number_type}}, run_status text)
language sql stable parallel safe as $$
  select r.flow_id::{{flow_id_type}},
         r.run_number::{{run_number_type}},
         case when (select s.valid_since is not null from status_indexer.state s) then r.run_status end
    from {{runs}} r
$$;

create view status_indexer.run_status as
  select s.flow_id, s.run_number, s.run_status
    from status_indexer.run_statuses() s;
