"""Stands for the web UI backend's module of this name, in what the plug-in touches and no more.

Written for the tests of the plug-in: a class of the runs table that inherits its listings, computes
`finished_at`, `status` and `duration` by joins, and groups runs in two statements. It says nothing
about the backend itself: whether that still looks like this is for a run against the real one to say.
"""

from services.data.postgres_async_db import METADATA_TABLE_NAME, RUN_INACTIVE_CUTOFF_TIME, RUN_TABLE_NAME, execute

OLD_RUN_FAILURE_CUTOFF_TIME = 86400000

USER = "(CASE WHEN system_tags ? ('user:' || user_name) THEN user_name ELSE NULL END)"


class Listings:
    def __init__(self, db):
        self.db = db

    async def find_records(
        self,
        conditions=None,
        values=(),
        fetch_single=False,
        limit=0,
        offset=0,
        order=None,
        groups=None,
        group_limit=10,
        expanded=False,
        enable_joins=False,
        postprocess=None,
        invalidate_cache=False,
        benchmark=False,
        overwrite_select_from=None,
    ):
        values = list(values)
        columns = self.select_columns + (self.join_columns if enable_joins else [])
        joins = self.joins if enable_joins else []
        rows = "select %s from %s %s" % (
            ", ".join(columns),
            overwrite_select_from or self.table_name,
            " ".join(joins),
        )
        rows = "select * from (%s) t" % rows
        if conditions:
            rows += " where " + " and ".join(conditions)
        ordered = " order by " + ", ".join(order) if order else ""
        page = (" limit %d" % limit if limit else "") + (" offset %d" % offset if offset else "")
        if not groups:
            result, pagination = await self.execute_sql(rows + ordered + page, values)
        else:
            label = ", ".join(groups)
            labels, _ = await self.execute_sql(
                "select distinct on (%s) * from (%s) d order by %s nulls last%s" % (label, rows, label, page), values
            )
            if not labels.body:
                return labels, None, None
            chosen = [[row[group.strip('"')] for row in labels.body] for group in groups]
            newest = "select *, row_number() over (partition by %s%s) as place from (%s) d" % (label, ordered, rows)
            wanted = ["%s = any(%%s)" % group for group in groups]
            if group_limit:
                wanted.append("place <= %d" % group_limit)
            sql = "select * from (%s) g where %s order by %s, place" % (newest, " and ".join(wanted), label)
            result, pagination = await self.execute_sql(sql, values + chosen)
        if postprocess is not None:
            result = postprocess(result, invalidate_cache=invalidate_cache)
        return result, pagination, None

    async def execute_sql(self, select_sql, values=(), fetch_single=False, expanded=False, limit=0, offset=0):
        # Who gave the answer, for the tests.
        self.db.joined = " join lateral (" in select_sql
        return await execute(self.db, select_sql, values)


class AsyncRunTablePostgres(Listings):
    table_name = RUN_TABLE_NAME
    keys = ["flow_id", "run_number", "run_id", "user_name", "ts_epoch", "last_heartbeat_ts", "tags", "system_tags"]

    joins = [
        """
        left join lateral (
            select ts_epoch, (to_jsonb(value) ->> 0)::boolean as value from {metadata} m
            where m.flow_id = {runs}.flow_id and m.run_number = {runs}.run_number
                and m.step_name = 'end' and m.field_name = 'attempt_ok'
            order by ts_epoch desc limit 1
        ) as ended on true
        left join lateral (
            select ts_epoch from {metadata} m
            where m.flow_id = {runs}.flow_id and m.run_number = {runs}.run_number
                and m.step_name = 'end' and m.field_name = 'attempt' and not ended.value
            order by ts_epoch desc limit 1
        ) as begun on true
        """.format(runs=RUN_TABLE_NAME, metadata=METADATA_TABLE_NAME)
    ]

    alive = "@(extract(epoch from now())-{runs}.last_heartbeat_ts)<={cutoff} ".format(
        runs=RUN_TABLE_NAME, cutoff=RUN_INACTIVE_CUTOFF_TIME
    )

    join_columns = [
        "(case when begun.ts_epoch > ended.ts_epoch then null when ended.ts_epoch is not null then ended.ts_epoch"
        " when %s then null else last_heartbeat_ts * 1000 end) as finished_at" % alive,
        "(case when begun.ts_epoch > ended.ts_epoch then 'running' when ended.value then 'completed'"
        " when not ended.value then 'failed' when %s then 'running' else 'failed' end) as status" % alive,
        "(case when begun.ts_epoch > ended.ts_epoch and last_heartbeat_ts is not null"
        " then last_heartbeat_ts * 1000 - {runs}.ts_epoch"
        " when ended.ts_epoch is not null then ended.ts_epoch - {runs}.ts_epoch"
        " when last_heartbeat_ts is not null then last_heartbeat_ts * 1000 - {runs}.ts_epoch"
        " when @(extract(epoch from now())::bigint*1000-{runs}.ts_epoch)>{old} then null"
        " else @(extract(epoch from now())::bigint*1000-{runs}.ts_epoch) end) as duration".format(
            runs=RUN_TABLE_NAME, old=OLD_RUN_FAILURE_CUTOFF_TIME
        ),
    ]

    @property
    def select_columns(self):
        columns = ["%s.%s as %s" % (self.table_name, key, key) for key in self.keys]
        return columns + [USER + ' as "user"', "coalesce(run_id, run_number::text) as run"]
