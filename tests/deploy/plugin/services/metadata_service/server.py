"""Stands for the metadata service: asked by a line of JSON, answers by one, ends with its input."""

import asyncio
import importlib
import json
import os
import sys

from services.data import postgres_async_db


async def serve(db):
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while True:
        line = await lines.readline()
        if not line:
            return
        ask = json.loads(line)
        if "listing" in ask:
            # As in the process of the UI backend, which contains the metadata service.
            ui = importlib.import_module("services.ui_backend_service.data.db.tables.run")
            table = ui.AsyncRunTablePostgres(db)
            response, _, _ = await table.find_records(enable_joins=True, expanded=True, **ask["listing"])
            answer = {"code": response.response_code, "body": response.body, "joined": db.joined}
            print(json.dumps(answer), flush=True)
            continue
        response, _ = await db.run_table_postgres.find_records(
            conditions=["flow_id = %s", "status = %s"],
            values=[ask["flow"], ask["status"]],
            order=["ts_epoch desc", "run_number desc"],
            limit=ask.get("limit", 51),
            enable_joins=True,
        )
        print(json.dumps({"code": response.response_code, "body": response.body, "joined": db.joined}), flush=True)


def main():
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    db = postgres_async_db._AsyncPostgresDB()
    loop.run_until_complete(db._init(os.environ["DSN"]))
    print(json.dumps({"serving": True}), flush=True)
    loop.run_until_complete(serve(db))


if __name__ == "__main__":
    main()
