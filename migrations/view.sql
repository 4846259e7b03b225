-- For readers in SQL: every column of the runs table, and `status`, which is exact in the snapshot of
-- the query. Where the site keeps it, also `finished_at`, milliseconds since the epoch. While the column
-- run_status is not valid, a query raises an error.
--
-- Three parts read the runs of one status each, by the index of this status, without the pending runs.
-- The fourth part is the pending runs, evaluated. A condition on `status` removes the parts that it
-- excludes.
--
-- The first three parts are the table and nothing else. What distinguishes them is a column of their
-- own, the constant `status`, and a condition outside. Only so does the planner treat them as it treats
-- the partitions of a table, which it reads in the order of a page and merges. It plans a part that has a
-- condition of its own like a subquery of which all rows are needed, and then fetches and sorts them.
--
-- A reader's condition on `status` compares constants or parameters, so it removes whole parts, when the
-- query is planned or when it starts. The condition on `stored_status` selects the index. It is written
-- with `any`, because the planner would combine `stored_status = status` with `status = $1` to
-- `stored_status = $1`, for which no index of a status serves.
--
-- While the column is exact, which is usual, the condition with `column_is_exact` spares two calls of
-- `pending`: the fourth part is not started, and the others need not look for their runs in it.
--
-- The view reads a function instead of the table, because PostgreSQL refuses to change the type of a
-- column that a view reads. The function is inlined. It has the columns of the time of the migration;
-- `migrate up` creates all three again where these changed.

-- The pending runs. A function, so that the planner and the start of a query pass over its join.
create function status_indexer.pending_runs()
returns table ({{columns_with_types}})
language plpgsql stable rows 10
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
    select {{columns_with_casts}}
      from status_indexer.pending() p
      join {{runs}} u on u.flow_id = p.flow_id and u.run_number = p.run_number;
end
$$;

create function status_indexer.parts()
returns table ({{columns_with_types}}, status text{{finish_type}}, stored_status text, evaluated boolean)
language sql stable as $$
  select {{columns_with_casts}}, u.status{{finish}}, u.stored_status, u.evaluated
    from (select {{columns}}, 'running'::text as status{{finish_of_running}},
                 r.run_status as stored_status, false as evaluated
            from {{runs}} r
           union all
          select {{columns}}, 'completed'::text{{finish_stored}},
                 r.run_status, false
            from {{runs}} r
           union all
          select {{columns}}, 'failed'::text{{finish_stored}},
                 r.run_status, false
            from {{runs}} r
           union all
          select {{columns}}, {{evaluate}}.status{{finish_evaluated}},
                 null::text, true
            from status_indexer.pending_runs() r) u
$$;

create view status_indexer.runs as
  select {{columns_of_view}}, p.status{{finish_of_view}}
    from status_indexer.parts() p
   where (p.evaluated
          or p.stored_status = any (array[p.status]))
     and (p.evaluated <> (select s.column_is_exact from status_indexer.read_state s)
          or not p.evaluated
             and (p.flow_id::text, p.run_number::bigint) not in (
                   select q.flow_id, q.run_number
                     from status_indexer.pending() q));
