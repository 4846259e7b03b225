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
-- The conditions with `column_is_exact` spare two calls of `pending`, whose result is usually empty.
--
-- The view reads a function instead of the table, because PostgreSQL refuses to change the type of a
-- column that a view reads. The function is inlined. It has the columns of the time of the migration;
-- `migrate up` creates both again where these changed.
create function status_indexer.parts()
returns table ({{columns_with_types}}, status text{{finish_type}}, stored_status text, evaluated boolean)
language sql stable as $$
  select {{columns_of_parts}}, u.status{{finish}}, u.stored_status, u.evaluated
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
          select {{columns}}, e.status{{finish_evaluated}},
                 e.status, true
            from status_indexer.pending() p
            join {{runs}} r on r.flow_id = p.flow_id and r.run_number = p.run_number
           cross join lateral status_indexer.status_now(p.flow_id, p.run_number, r.last_heartbeat_ts::bigint) e) u
$$;

create view status_indexer.runs as
  select {{columns_of_view}}, p.status{{finish_of_view}}
    from status_indexer.parts() p
   where p.stored_status = any (array[p.status])
     and (not p.evaluated
          or not (select s.column_is_exact from status_indexer.read_state s))
     and (p.evaluated
          or (select s.column_is_exact from status_indexer.read_state s)
          or (p.flow_id::text, p.run_number::bigint) not in (
                select q.flow_id, q.run_number
                  from status_indexer.pending() q));
