"""Stands for the metadata service's module of this name, in what the plug-in touches and no more.

Written for the tests of the plug-in: a class of the runs table with `joins` and `join_columns`, a
query put together from them at each call, errors as answers, a database that opens an aiopg pool
when the service starts. It says nothing about the service itself: whether that still looks like
this is for a run against the real one to say.
"""

import collections
import json
import logging
import os

import aiopg
import psycopg2
import psycopg2.extras

RUN_TABLE_NAME = os.environ.get("DB_TABLE_NAME_RUNS", "runs_v3")
FLOW_TABLE_NAME = os.environ.get("DB_TABLE_NAME_FLOWS", "flows_v3")
METADATA_TABLE_NAME = os.environ.get("DB_TABLE_NAME_METADATA", "metadata_v3")
RUN_INACTIVE_CUTOFF_TIME = int(os.environ.get("RUN_INACTIVE_CUTOFF_TIME", 360))

logging.basicConfig(level=logging.INFO)

Response = collections.namedtuple("Response", "response_code body")


async def execute(db, sql, values):
    """The answer to a statement, which is the database's error if there is one."""
    try:
        async with db.reader_pool.acquire() as connection:
            async with connection.cursor(cursor_factory=psycopg2.extras.DictCursor) as cursor:
                await cursor.execute(sql, values)
                return Response(200, [dict(row) for row in await cursor.fetchall()]), "pagination"
    except psycopg2.Error as error:
        body = {"err_msg": {"pgerror": error.pgerror, "pgcode": error.pgcode}}
        return Response(500, json.dumps(body)), None


class Table:
    joins = None
    join_columns = None

    def __init__(self, db):
        self.db = db

    async def find_records(self, conditions, values, order, limit, enable_joins=False):
        sql = "select * from (select {columns} from {table} {joins}) t where {where} order by {order} limit {limit}".format(
            columns=", ".join(self.columns + (self.join_columns if enable_joins and self.join_columns else [])),
            table=self.table_name,
            joins=" ".join(self.joins) if enable_joins and self.joins is not None else "",
            where=" and ".join(conditions),
            order=", ".join(order),
            limit=limit,
        )
        # Who gave the answer, for the tests.
        self.db.joined = " join " in sql
        return await execute(self.db, sql, values)


class AsyncRunTablePostgres(Table):
    table_name = RUN_TABLE_NAME

    @property
    def columns(self):
        # Qualified: the joins have columns of these names too.
        return ["%s.%s as %s" % (self.table_name, key, key) for key in ("flow_id", "run_number", "ts_epoch")]

    if os.environ.get("HOST_RELEASE") != "old":
        joins = [
            """
            left join lateral (
                select ts_epoch, value::boolean as value
                from {metadata} as m
                where m.flow_id = {runs}.flow_id and m.run_number = {runs}.run_number
                    and m.step_name = 'end' and m.field_name = 'attempt_ok'
                order by ts_epoch desc
                limit 1
            ) as ok on true
            """.format(runs=RUN_TABLE_NAME, metadata=METADATA_TABLE_NAME),
        ]
        join_columns = [
            """
            (case
                when ok.value then 'completed'
                when not ok.value then 'failed'
                when @(extract(epoch from now())-{runs}.last_heartbeat_ts)<={cutoff} then 'running'
                else 'failed'
            end) as status
            """.format(runs=RUN_TABLE_NAME, cutoff=RUN_INACTIVE_CUTOFF_TIME),
        ]


class _AsyncPostgresDB:
    pool = None
    reader_pool = None

    def __init__(self):
        self.run_table_postgres = AsyncRunTablePostgres(self)

    async def _init(self, dsn):
        self.pool = await aiopg.create_pool(dsn, minsize=1, maxsize=2, timeout=30)
        self.reader_pool = self.pool
