-- The data before status-indexer is installed: two thousand runs of the last weeks. Of twenty runs,
-- one has crashed, two have failed and the others have completed. A few are being retried without
-- end, and a few never had a heartbeat. Run once, on upstream's empty tables.

insert into flows_v3 (flow_id, user_name, ts_epoch, tags, system_tags)
select flow_id, 'ada', (extract(epoch from clock_timestamp()) * 1000)::bigint, '[]', '["user:ada"]'
  from unnest(array['TrainFlow', 'ScoreFlow', 'ImportFlow', 'ReportFlow']) flow_id;

insert into runs_v3 (flow_id, user_name, ts_epoch, tags, system_tags, last_heartbeat_ts)
select (array['TrainFlow', 'ScoreFlow', 'ImportFlow', 'ReportFlow'])[1 + i % 4],
       (array['ada', 'grace', 'edsger', 'barbara'])[1 + i / 4 % 4],
       (created * 1000)::bigint,
       '[]',
       '["metaflow_version:2.12.5", "runtime:dev"]',
       case when i % 40 <> 0 then created::bigint + 300 end
  from (select i, extract(epoch from clock_timestamp()) - (2001 - i) * 900 as created
          from generate_series(1, 2000) i) past
 order by i;

insert into metadata_v3 (flow_id, run_number, step_name, task_id, field_name, value, type,
                         user_name, ts_epoch, tags, system_tags)
select r.flow_id, r.run_number, 'end', r.run_number, e.field_name, e.value, e.type,
       r.user_name, r.ts_epoch + e.after_ms, '["attempt_id:0"]', '[]'
  from runs_v3 r
 cross join lateral (values ('attempt', '0', 'attempt', 290000),
                            ('attempt_ok', case when r.run_number % 20 in (1, 7) then 'False' else 'True' end,
                             'internal_attempt_status', 300000),
                            ('attempt', '1', 'attempt', 310000)) e (field_name, value, type, after_ms)
 where r.run_number % 20 <> 0
   and (e.after_ms < 310000 or r.run_number % 100 = 7)
 order by r.run_number, e.after_ms;

analyze;
