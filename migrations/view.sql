-- For readers in SQL: every column of the runs table, and `status`, which is exact in the snapshot of
-- the query. Where the site keeps it, also `finished_at`, milliseconds since the epoch. While the column
-- run_status is not valid, a query raises an error.
--
-- One ordered range of the index `status_indexer_listing` for each status, without the pending runs,
-- and the pending runs, evaluated. A condition on `status` removes the ranges that it excludes. The
-- four parts are sorted, although a view promises no order: only so does the planner merge them
-- instead of sorting all rows of a page's flow.
--
-- The second condition on the column is redundant. The planner does not know its bounds, and assumes that
-- a range of unknown bounds is narrow. So it reads the index in the order of a page, instead of fetching
-- and sorting all runs of a flow that it takes for a small one. The price: it underestimates the rows of a
-- query that reads the whole view.
--
-- The view reads a function instead of the table, because PostgreSQL refuses to change the type of a
-- column that a view reads. The function is inlined. It has the columns of the time of the migration;
-- `migrate up` creates both again where these changed.
create function status_indexer.exact_runs()
returns table ({{columns_with_types}}, status text{{finish_type}})
language sql stable as $$
  (select {{columns}}, 'running'::text{{finish_of_running}}
     from {{runs}} r
    where r.run_status = 'running'
      and r.run_status between status_indexer.as_is('running') and status_indexer.as_is('running')
      and (r.flow_id::text, r.run_number::bigint) not in (
            select p.flow_id, p.run_number
              from status_indexer.pending() p)
    order by r.ts_epoch desc, r.run_number desc)
  union all
  (select {{columns}}, 'completed'::text{{finish_stored}}
     from {{runs}} r
    where r.run_status = 'completed'
      and r.run_status between status_indexer.as_is('completed') and status_indexer.as_is('completed')
      and (r.flow_id::text, r.run_number::bigint) not in (
            select p.flow_id, p.run_number
              from status_indexer.pending() p)
    order by r.ts_epoch desc, r.run_number desc)
  union all
  (select {{columns}}, 'failed'::text{{finish_stored}}
     from {{runs}} r
    where r.run_status = 'failed'
      and r.run_status between status_indexer.as_is('failed') and status_indexer.as_is('failed')
      and (r.flow_id::text, r.run_number::bigint) not in (
            select p.flow_id, p.run_number
              from status_indexer.pending() p)
    order by r.ts_epoch desc, r.run_number desc)
  union all
  (select {{columns}}, e.status{{finish_evaluated}}
     from status_indexer.pending() p
     join {{runs}} r on r.flow_id = p.flow_id and r.run_number = p.run_number
    cross join lateral status_indexer.status_now(p.flow_id, p.run_number, r.last_heartbeat_ts::bigint) e
    order by r.ts_epoch desc, r.run_number desc)
$$;

create view status_indexer.runs as
  select * from status_indexer.exact_runs();
