-- The six tables of Metaflow's metadata service, as they are after all of its migrations.
-- Contains no object of status-indexer: this is the state before it is installed, for the demo and
-- the tests. Promises the names, types, keys, indexes and foreign keys of the real schema, and the
-- order of its columns, because each of these affects plans, locks or the text of a dump.
-- Run once, on an empty database.

create table flows_v3 (
    flow_id     varchar(255) primary key,
    user_name   varchar(255),
    ts_epoch    bigint not null,
    tags        jsonb,
    system_tags jsonb
);

create index flows_v3_idx_ts_flow_desc
    on flows_v3 (ts_epoch desc, flow_id desc);

-- run_id is the name that a scheduler gave the run; most runs have only a run_number.
create table runs_v3 (
    flow_id           varchar(255) not null,
    run_number        serial not null,
    user_name         varchar(255),
    ts_epoch          bigint not null,
    tags              jsonb,
    system_tags       jsonb,
    run_id            varchar(255),
    last_heartbeat_ts bigint,
    primary key (flow_id, run_number),
    foreign key (flow_id) references flows_v3 (flow_id),
    constraint runs_v3_flow_id_run_id_key unique (flow_id, run_id)
);

create index runs_v3_idx_ts_epoch
    on runs_v3 (ts_epoch);

create index runs_v3_idx_epoch_ts_desc
    on runs_v3 (ts_epoch desc);

create index runs_v3_idx_gin_tags_combined
    on runs_v3 using gin ((tags || system_tags));

create index runs_v3_idx_flow_id_asc_ts_epoch_desc
    on runs_v3 (flow_id, ts_epoch desc);

-- The user's name, only if the service itself set it.
create index runs_v3_idx_user_asc_ts_epoch_desc
    on runs_v3 ((case when system_tags ? ('user:' || user_name) then user_name end), ts_epoch desc);

create index runs_v3_idx_str_ids_primary_key_v2
    on runs_v3 (flow_id, run_id);

create index runs_v3_idx_flow_ts_runnum_desc
    on runs_v3 (flow_id, ts_epoch desc, run_number desc);

create table steps_v3 (
    flow_id     varchar(255) not null,
    run_number  bigint not null,
    step_name   varchar(255) not null,
    user_name   varchar(255),
    ts_epoch    bigint not null,
    tags        jsonb,
    system_tags jsonb,
    run_id      varchar(255),
    primary key (flow_id, run_number, step_name),
    foreign key (flow_id, run_number) references runs_v3 (flow_id, run_number),
    constraint steps_v3_flow_id_run_id_step_name_key unique (flow_id, run_id, step_name)
);

create index steps_v3_idx_str_ids_primary_key_v2
    on steps_v3 (flow_id, run_id, step_name);

create table tasks_v3 (
    flow_id           varchar(255) not null,
    run_number        bigint not null,
    step_name         varchar(255) not null,
    task_id           bigserial primary key,
    user_name         varchar(255),
    ts_epoch          bigint not null,
    tags              jsonb,
    system_tags       jsonb,
    run_id            varchar(255),
    task_name         varchar(255),
    last_heartbeat_ts bigint,
    foreign key (flow_id, run_number, step_name)
        references steps_v3 (flow_id, run_number, step_name),
    constraint tasks_v3_flow_id_run_number_step_name_task_name_key
        unique (flow_id, run_number, step_name, task_name)
);

create index tasks_v3_idx_flow_id_run_id_step_name_task_name_v2
    on tasks_v3 (flow_id, run_id, step_name, task_name);

create index tasks_v3_idx_flow_run_step_ts_task_desc
    on tasks_v3 (flow_id, run_number, step_name, ts_epoch desc, task_id desc);

-- No foreign key: metadata of a run that does not exist can be written, and this happens.
create table metadata_v3 (
    flow_id     varchar(255) not null,
    run_number  bigint not null,
    step_name   varchar(255) not null,
    task_id     bigint not null,
    id          bigserial not null,
    field_name  varchar(255) not null,
    value       text not null,
    type        varchar(255) not null,
    user_name   varchar(255),
    ts_epoch    bigint not null,
    tags        jsonb,
    system_tags jsonb,
    run_id      varchar(255),
    task_name   varchar(255),
    primary key (id, flow_id, run_number, step_name, task_id, field_name)
);

create index metadata_v3_akey
    on metadata_v3 (flow_id, run_number, step_name, task_id, field_name);

create index metadata_v3_idx_str_ids_a_key
    on metadata_v3 (flow_id, run_id, step_name, task_name, field_name);

create index metadata_v3_idx_str_ids_a_key_with_task_id
    on metadata_v3 (flow_id, run_id, step_name, task_id, field_name);

create index metadata_v3_idx_flow_run_ts_id_desc
    on metadata_v3 (flow_id, run_number, ts_epoch desc, id desc);

create table artifact_v3 (
    flow_id      varchar(255) not null,
    run_number   bigint not null,
    step_name    varchar(255) not null,
    task_id      bigint not null,
    name         varchar(255) not null,
    location     varchar(255) not null,
    ds_type      varchar(255) not null,
    sha          varchar(255),
    type         varchar(255),
    content_type varchar(255),
    user_name    varchar(255),
    attempt_id   smallint not null,
    ts_epoch     bigint not null,
    tags         jsonb,
    system_tags  jsonb,
    run_id       varchar(255),
    task_name    varchar(255),
    primary key (flow_id, run_number, step_name, task_id, attempt_id, name)
);

create index artifact_v3_idx_str_ids_primary_key_v2
    on artifact_v3 (flow_id, run_id, step_name, task_name, attempt_id, name);

create index artifact_v3_idx_str_ids_primary_key_with_task_id
    on artifact_v3 (flow_id, run_id, step_name, task_id, attempt_id, name);

create index artifact_v3_idx_latest_attempt
    on artifact_v3 (flow_id, run_number, task_id, name, ts_epoch desc);
