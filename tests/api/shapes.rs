//! Runs of unusual size, and columns of unusual types.

use super::server::ApiServer;

/// 20 MB in 500 runs.
const LARGE: &str = "\
insert into flows_v3 (flow_id, ts_epoch) values ('F', 1);
insert into runs_v3 (flow_id, user_name, ts_epoch, tags, system_tags)
select 'F', 'u', i, jsonb_build_array(repeat(md5(i::text), 1280)), '[]'
  from generate_series(1, 500) i";

/// One run that is larger than a chunk of the complete list, among others.
const GIANT: &str = "\
insert into runs_v3 (flow_id, user_name, ts_epoch, tags, system_tags)
values ('F', 'u', 250, jsonb_build_array(repeat('x', 3000000)), '[]')";

/// What a later version of the metadata service may do.
const OTHER_TYPES: [&str; 6] = [
    "run_number type bigint",
    "run_id type text",
    "user_name type text",
    "ts_epoch type numeric",
    "last_heartbeat_ts type numeric",
    "last_heartbeat_ts type double precision",
];

#[tokio::test]
async fn a_page_that_is_too_large_is_refused_and_a_smaller_one_is_answered() {
    let server = ApiServer::new().await;
    server.sql(LARGE).await;
    for status in ["", "&status=running"] {
        let answer = server
            .get(&format!("/flows/F/runs?_limit=500{status}"))
            .await;
        assert_eq!(answer.code, 400);
        let reason = answer.json();
        assert!(
            reason
                .as_str()
                .is_some_and(|text| text.contains("larger than 16 MiB: use a smaller _limit")),
            "{reason}"
        );
        let page = server
            .get(&format!("/flows/F/runs?_limit=300{status}"))
            .await;
        assert_eq!((page.code, page.numbers().len()), (200, 300));
    }
}

#[tokio::test]
async fn a_run_of_any_size_is_in_the_complete_list() {
    let server = ApiServer::new().await;
    server.sql(LARGE).await;
    server.sql(GIANT).await;
    let list = server.get("/flows/F/runs").await;
    assert_eq!(list.code, 200);
    let expected: Vec<String> = server
        .client
        .query(
            "select run_number::text from runs_v3 order by ts_epoch desc, run_number desc",
            &[],
        )
        .await
        .expect("the table exists")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(list.numbers() == expected);
}

#[tokio::test]
async fn columns_that_upstream_changes_are_answered_as_before() {
    for change in OTHER_TYPES {
        let server = ApiServer::new().await;
        server
            .sql(
                "insert into flows_v3 (flow_id, ts_epoch) values ('F', 1);
                 insert into runs_v3 (flow_id, user_name, ts_epoch, last_heartbeat_ts)
                 select 'F', 'u', i, i from generate_series(1, 20) i",
            )
            .await;
        let paths = [
            "/flows/F/runs",
            "/flows/F/runs?status=running&_limit=7",
            "/flows/F/runs?user_name=u&_limit=7",
        ];
        let mut before = Vec::new();
        for path in paths {
            before.push(server.get(path).await.json());
        }
        server
            .sql(&format!("alter table runs_v3 alter {change}"))
            .await;
        for (path, before) in paths.iter().zip(before) {
            let after = server.get(path).await;
            assert_eq!(
                (after.code, after.json()),
                (200, before),
                "{change}: {path}"
            );
        }
    }
}
