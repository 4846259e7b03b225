//! The baseline for comparisons: the definition in plain, set-based SQL.
//!
//! Uses none of the indexer's functions. Slightly simpler than the definition: it handles only the
//! values that clients write.

/// The status of every run. `$1` is the cutoff in seconds.
macro_rules! evaluated {
    () => {
        "\
evaluated as (
  select r.flow_id,
         r.run_number,
         case
           when e.ok[3] = 0 and e.retry_ts > e.ok[1] then 'running'
           when e.ok[3] = 1 then 'completed'
           when e.ok[3] = 0 then 'failed'
           when abs(extract(epoch from now()) - r.last_heartbeat_ts) <= $1::bigint then 'running'
           else 'failed'
         end as status
    from runs_v3 r
    left join (select flow_id,
                      run_number,
                      max(array[ts_epoch, id, (value = 'True')::int])
                        filter (where field_name = 'attempt_ok') as ok,
                      max(ts_epoch) filter (where field_name = 'attempt') as retry_ts
                 from metadata_v3
                where step_name = 'end'
                  and field_name in ('attempt', 'attempt_ok')
                group by flow_id, run_number) e
      on e.flow_id = r.flow_id
     and e.run_number = r.run_number
)"
    };
}

/// Writes every status that differs from the column's default.
pub(crate) const SPARSE_UPDATE: &str = concat!(
    "with ",
    evaluated!(),
    "
update runs_v3 r
   set run_status = j.status
  from evaluated j
 where r.flow_id = j.flow_id
   and r.run_number = j.run_number
   and r.run_status <> j.status"
);

/// Counts the runs whose stored status differs from the definition's.
pub(crate) const COUNT_WRONG: &str = concat!(
    "with ",
    evaluated!(),
    "
select count(*)
  from runs_v3 r
  join evaluated j using (flow_id, run_number)
 where r.run_status <> j.status"
);

/// Computes every status and counts them.
pub(crate) const COUNT_ALL: &str = concat!(
    "with ",
    evaluated!(),
    "
select count(*) filter (where status = 'running'),
       count(*) filter (where status = 'completed'),
       count(*) filter (where status = 'failed')
  from evaluated"
);
