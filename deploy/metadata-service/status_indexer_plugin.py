"""Lets the metadata service answer its status filter from the indexer's column.

Owns two attributes of the service's runs table, `joins` and `join_columns`: while the column is to
be believed they read the column, else they are the service's own. Promises that the service starts
and answers whatever this file meets: every failure here ends in the service's own joins and one
line in its log. Works in the service's event loop and borrows one connection of its pool, for one
short look every few seconds. Loaded by `sitecustomize.py` beside it, or as
`python -m status_indexer_plugin services.metadata_service.server`. Needs nothing to be installed.
"""

import asyncio
import hashlib
import importlib.util
import json
import logging
import os
import re
import runpy
import sys

# The module of the service that defines its tables.
HOST = "services.data.postgres_async_db"

# What is selected instead of the joins' result. The service's rows take this name and no other.
COLUMN = "run_status AS status"

# Fingerprints of the joins that say what definition 1 of the indexer says. Others may mean
# something else, and then the column is no answer to the same question.
KNOWN = {"f78c1c98"}
DEFINITION = 1

# Seconds between two looks, and how long one may take.
EVERY = 10.0
LOOK_TIMEOUT = 2.0

# Looks in a row without an answer, about a minute, after which the column is in doubt. Not the first:
# a busy database would get the joins, which are more work, when it can bear them least.
PATIENCE = 5

# Seconds by which a status may be late before nobody seems to keep the column.
GRACE = 60

# undefined_column, insufficient_privilege: what a query meets when the column goes between two looks.
REFUSALS = ("42703", "42501")

# Asks the catalog only, so that nothing fails, and fills the server's log, where nothing is installed.
# The limit is the server's own, for what nobody waits for any more. It is above LOOK_TIMEOUT, because
# aiopg logs a canceled statement at length.
PRESENT = """\
-- plugin.present
set local statement_timeout = '3s';
select (select bool_and(has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select'))
          from pg_catalog.pg_namespace n
          join pg_catalog.pg_class c on c.relnamespace = n.oid
         where n.nspname = 'status_indexer'
           and c.relname in ('state', 'queue')),
       (select has_column_privilege(a.attrelid, a.attnum, 'select')
          from pg_catalog.pg_attribute a
         where a.attrelid = to_regclass(%s)
           and a.attname = 'run_status'
           and not a.attisdropped)"""

# The last two are the column's own evidence that nobody keeps it: events that wait, and running runs
# that nothing but time can have failed. They hold on a replica and behind a pooler too.
JUDGE = """\
-- plugin.judge
set local statement_timeout = '3s';
select s.definition_version,
       s.cutoff_secs,
       to_regclass(s.runs_table) = to_regclass(%s),
       status_indexer.is_valid(),
       exists (select
                 from status_indexer.queue q
                where q.enqueued_at < clock_timestamp() - %s * interval '1 s'),
       exists (select
                 from {runs} r
                where r.run_status = 'running'
                  and r.last_heartbeat_ts < extract(epoch from clock_timestamp()) - s.cutoff_secs - %s
                  and not exists (select
                                    from {metadata} m
                                   where m.flow_id = r.flow_id
                                     and m.run_number = r.run_number
                                     and m.step_name = 'end'
                                     and m.field_name = 'attempt_ok'))
  from status_indexer.state s"""

log = logging.getLogger("status_indexer_plugin")


class Switch:
    """Decides who answers a status filter: the service's own joins, or the column."""

    def __init__(self, host):
        self.table = host.AsyncRunTablePostgres
        self.metadata = host.METADATA_TABLE_NAME
        self.cutoff = host.RUN_INACTIVE_CUTOFF_TIME
        self.own = vars(self.table)["joins"], vars(self.table)["join_columns"]
        self.on = False
        self.told = None
        self.unanswered = 0
        self.every = max(0.1, float(os.environ.get("STATUS_INDEXER_PLUGIN_SECONDS") or EVERY))

    def turn(self, doubt):
        """To the column if there is no doubt, to the joins if there is; tells what is new."""
        self.on = doubt is None
        # No await between the two: a query is put together from both.
        self.table.joins, self.table.join_columns = ([], [COLUMN]) if self.on else self.own
        if self.told != (doubt,):
            self.told = (doubt,)
            if self.on:
                log.info("status filters read the column run_status")
            else:
                log.warning("status filters use the service's own joins: %s", doubt)

    def start(self, db):
        """Looks now and then, for as long as the service's loop runs."""
        loop = asyncio.get_running_loop()

        # A timer, not a task that sleeps: that one would be complained about when the loop ends.
        def look():
            self.looking = loop.create_task(self.look(db))
            self.looking.add_done_callback(lambda _: loop.call_later(self.every, look))

        look()

    async def look(self, db):
        try:
            doubt = await asyncio.wait_for(self.doubt(db), LOOK_TIMEOUT)
            self.unanswered = 0
            self.turn(doubt)
        # Whatever it is, it is not the service's trouble. For aiopg a canceled statement is a canceled task.
        except (Exception, asyncio.CancelledError) as error:
            self.unanswered += 1
            if not self.on or self.unanswered >= PATIENCE:
                self.turn("no answer about the column (%s)" % brief(error))

    async def doubt(self, db):
        """Why the column is not to be read, in words; none if it is."""
        name = self.table.table_name
        # The pool that the service's own lists are read from: a replica may be behind.
        async with (db.reader_pool or db.pool).acquire() as connection:
            async with connection.cursor() as cursor:
                await cursor.execute(PRESENT, (name,))
                installed, column = await cursor.fetchone()
                if installed is None:
                    return "the indexer is not installed in this database"
                if not installed:
                    return "this role needs usage on schema status_indexer, select on its tables state and queue"
                if not column:
                    return "%s has no column run_status that this role may read" % name
                await cursor.execute(JUDGE.format(runs=name, metadata=self.metadata), (name, GRACE, GRACE))
                row = await cursor.fetchone()
        if row is None:
            return "status_indexer.state is empty"
        definition, cutoff, same_table, believable, waiting, overdue = row
        if definition != DEFINITION:
            return "the indexer goes by definition %s, this plug-in by %s" % (definition, DEFINITION)
        if not same_table:
            return "the indexer is installed for another table than %s" % name
        if cutoff != self.cutoff:
            return "RUN_INACTIVE_CUTOFF_TIME is %s here and %s for the indexer" % (self.cutoff, cutoff)
        if not believable:
            return "the column is not to be believed until the indexer's first pass is done"
        if waiting or overdue:
            return "the column is more than %s s behind: is `status-indexer run` running?" % GRACE
        return None

    def guard(self, find_records):
        """`find_records` that asks again, with the joins, when the column was refused."""

        async def guarded(table, *args, **kwargs):
            on = self.on
            answer = await find_records(table, *args, **kwargs)
            if on and refused(answer):
                self.turn("the column is gone")
                answer = await find_records(table, *args, **kwargs)
            return answer

        return guarded


def refused(answer):
    try:
        response = answer[0]
        return response.response_code == 500 and json.loads(response.body)["err_msg"]["pgcode"] in REFUSALS
    except Exception:
        return False


def fingerprint(host):
    """Of the joins' text, whatever the tables, the cutoff and the indentation are."""
    table = host.AsyncRunTablePostgres
    joins, columns = vars(table).get("joins"), vars(table).get("join_columns")
    if not isinstance(joins, list) or not isinstance(columns, list):
        return None
    text = " ".join("\n".join(joins + ["select"] + columns).split())
    text = text.replace("<=%s " % host.RUN_INACTIVE_CUTOFF_TIME, "<={cutoff} ")
    for name, value in (("runs", table.table_name), ("metadata", host.METADATA_TABLE_NAME)):
        text = re.sub(r"(?<![\w.])%s(?!\w)" % re.escape(value), "{%s}" % name, text)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def attach(host):
    """Puts the switch into the service's module, once that is loaded."""
    if getattr(host, "status_indexer_switch", None):
        return
    seen = fingerprint(host)
    if seen is None:
        log.warning("not in use: this release of the service has no status filter with joins")
        return
    if seen not in KNOWN | {os.environ.get("STATUS_INDEXER_PLUGIN_ACCEPT")}:
        log.warning(
            "not in use: the service's joins (fingerprint %s) are not those that this plug-in knows; "
            "see its README before you accept them",
            seen,
        )
        return
    switch = Switch(host)
    init = host._AsyncPostgresDB._init

    async def _init(db, *args, **kwargs):
        result = await init(db, *args, **kwargs)
        try:
            # The UI's backend has the same base, and a runs table of its own.
            if isinstance(db.run_table_postgres, switch.table):
                switch.start(db)
        except Exception as error:
            log.warning("not in use: %s", brief(error))
        return result

    host.status_indexer_switch = switch
    switch.table.find_records = switch.guard(switch.table.find_records)
    host._AsyncPostgresDB._init = _init


def brief(error):
    """An error in one line."""
    text = " ".join(str(error).split())
    return "%s: %s" % (type(error).__name__, text[:200]) if text else type(error).__name__


class Finder:
    """Notices when the service's module is imported, once, and leaves the import as it is."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != HOST:
            return None
        try:
            sys.meta_path.remove(cls)
            spec = importlib.util.find_spec(name)
            load = spec.loader.exec_module

            def exec_module(module):
                load(module)
                try:
                    attach(module)
                except Exception as error:
                    log.warning("not in use: %s", brief(error))

            spec.loader.exec_module = exec_module
            return spec
        except Exception as error:
            log.warning("not in use: %s", brief(error))
            return None


def install():
    """Called before the service is imported. `STATUS_INDEXER_PLUGIN=off` makes it do nothing."""
    if os.environ.get("STATUS_INDEXER_PLUGIN", "on").lower() not in ("off", "0", "false", "no"):
        if Finder not in sys.meta_path and HOST not in sys.modules:
            sys.meta_path.insert(0, Finder)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m status_indexer_plugin MODULE [ARGUMENT ...]")
    install()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
