"""Makes the metadata service read run statuses from the view that status-indexer maintains.

Owns one method of the service's runs table, `find_records`. While the view can be read, the listings
with a status are answered from it. Otherwise they are answered by the service's own joins, which
compute the status. The answers are equal: a status in the view is exact in the snapshot of the query.
Promises that the service always starts and answers: every failure here ends with the service's own
joins and one line in its log. Runs in the service's event loop and borrows one connection of its pool
for a short check every few seconds.

Loaded by `sitecustomize.py` beside this file, or by
`python -m status_indexer_plugin services.metadata_service.server`. Needs only the standard library.
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
SERVICE_MODULE = "services.data.postgres_async_db"

# What the service reads instead of its runs table and joins: it has all columns of the table, and
# `status`.
VIEW = "status_indexer.runs"

# Fingerprints of the joins that implement the indexer's definition 1 of a status. Joins with
# another text may define a status differently; the view would then give other answers.
KNOWN_FINGERPRINTS = {"f78c1c98"}
DEFINITION_VERSION = 1

# The version of the view that this file reads.
READS_VERSION = 1

# Seconds between two checks, and the time limit of one.
CHECK_INTERVAL = 10.0
CHECK_TIMEOUT = 2.0

# Consecutive failed checks, about a minute, after which the joins are used. One failure is not
# enough: the joins cost more than the view, and would add to the load of a busy database.
MAX_FAILED_CHECKS = 5

# Runs that each read of the view has to evaluate, above which the joins cost less. There are as many
# only while no indexer is running.
MAX_PENDING = 1000

# undefined_column, undefined_table, undefined_function, invalid_schema_name, insufficient_privilege,
# and object_not_in_prerequisite_state, which the view raises while the column is not valid: the errors
# of a query after a change since the last check.
VIEW_ERRORS = ("42703", "42P01", "42883", "3F000", "42501", "55000")

# Reads only the catalog, so that it succeeds where the indexer is not installed, and the server logs
# no error. The statement timeout ends a statement whose check has timed out. It is longer than
# CHECK_TIMEOUT, because aiopg logs a long message about a statement that the server cancels.
INSTALLATION = """\
-- plugin.installation
set local statement_timeout = '3s';
select has_schema_privilege(n.oid, 'usage'),
       (select has_table_privilege(c.oid, 'select')
          from pg_catalog.pg_class c
         where c.relnamespace = n.oid
           and c.relname = 'state'),
       (select has_table_privilege(c.oid, 'select')
          from pg_catalog.pg_class c
         where c.relnamespace = n.oid
           and c.relname = 'runs'
           and c.relkind = 'v')
  from (values ('status_indexer')) expected (name)
  left join pg_catalog.pg_namespace n on n.nspname = expected.name"""

STATE = """\
-- plugin.state
set local statement_timeout = '3s';
select s.definition_version,
       s.reads_version,
       s.cutoff_secs,
       to_regclass(s.runs_table) = to_regclass(%s),
       status_indexer.is_readable(s.valid_since),
       (select count(*)
          from (select
                  from status_indexer.pending(null, false)
                 limit %s) p)
  from status_indexer.state s"""

log = logging.getLogger("status_indexer_plugin")


class Switch:
    """Selects the source of statuses: the view, or the service's own joins."""

    def __init__(self, service):
        self.table = service.AsyncRunTablePostgres
        self.cutoff_secs = service.RUN_INACTIVE_CUTOFF_TIME
        # A table of the service's whose rows are those of the view.
        self.view = type(
            self.table.__name__, (self.table,), {"table_name": VIEW, "joins": [], "join_columns": ["status"]}
        )
        self.uses_view = False
        # The objection that was logged last, in a tuple; None before the first.
        self.logged = None
        self.failed_checks = 0
        interval = os.environ.get("STATUS_INDEXER_PLUGIN_SECONDS") or CHECK_INTERVAL
        self.interval = max(0.1, float(interval))

    def select(self, objection):
        """Uses the view, or the joins if there is an objection to it. Logs changes."""
        self.uses_view = objection is None
        if self.logged == (objection,):
            return
        self.logged = (objection,)
        if self.uses_view:
            log.info("status filters read the view %s", VIEW)
        else:
            log.warning("status filters use the service's own joins: %s", objection)

    def start_checks(self, db):
        """Checks the view periodically, for as long as the service's event loop runs."""
        loop = asyncio.get_running_loop()

        # A timer instead of a sleeping task, about which asyncio would warn when the loop ends.
        def check():
            self.checking = loop.create_task(self.check(db))
            self.checking.add_done_callback(lambda _: loop.call_later(self.interval, check))

        check()

    async def check(self, db):
        """Selects the source according to the current state of the indexer. Never fails."""
        try:
            objection = await asyncio.wait_for(self.find_objection(db), CHECK_TIMEOUT)
            self.failed_checks = 0
            self.select(objection)
        # No failure may reach the service. aiopg raises CancelledError for a canceled statement.
        except (Exception, asyncio.CancelledError) as error:
            self.failed_checks += 1
            if not self.uses_view or self.failed_checks >= MAX_FAILED_CHECKS:
                self.select(f"the view cannot be checked ({one_line(error)})")

    async def find_objection(self, db):
        """The reason not to use the view, or None."""
        # The pool that the service lists runs from, because a replica may lag behind the primary.
        async with (db.reader_pool or db.pool).acquire() as connection:
            async with connection.cursor() as cursor:
                await cursor.execute(INSTALLATION)
                objection = self.installation_objection(*await cursor.fetchone())
                if objection is not None:
                    return objection
                await cursor.execute(STATE, (self.table.table_name, MAX_PENDING + 1))
                return self.state_objection(await cursor.fetchone())

    def installation_objection(self, schema_readable, state_readable, view_readable):
        """The objection to the row of INSTALLATION, where None stands for what does not exist."""
        if schema_readable is None or state_readable is None:
            return "the indexer is not installed in this database"
        if view_readable is None:
            return f"the indexer's schema has no view {VIEW}: run `status-indexer migrate up`"
        if not (schema_readable and state_readable and view_readable):
            return (
                "the service's role needs usage on schema status_indexer "
                "and select on its relations state and runs"
            )
        return None

    def state_objection(self, row):
        """The objection to a row of STATE, which is None if the indexer has no state."""
        if row is None:
            return "status_indexer.state is empty"
        definition_version, reads_version, cutoff_secs, same_table, readable, pending = row
        if definition_version != DEFINITION_VERSION:
            return (
                f"the indexer uses definition {definition_version} of a status, "
                f"the plug-in supports definition {DEFINITION_VERSION}"
            )
        if reads_version != READS_VERSION:
            return (
                f"the indexer's view has version {reads_version}, the plug-in supports version {READS_VERSION}: "
                "install the plug-in of the same release"
            )
        if not same_table:
            return f"the indexer is installed for a table other than {self.table.table_name}"
        if cutoff_secs != self.cutoff_secs:
            return (
                f"RUN_INACTIVE_CUTOFF_TIME is {self.cutoff_secs} for the service "
                f"and {cutoff_secs} for the indexer"
            )
        if not readable:
            return "the column is not valid until the indexer's backfill is complete"
        if pending > MAX_PENDING:
            return (
                f"more than {MAX_PENDING} runs are waiting for the indexer: "
                "check that `status-indexer run` is running"
            )
        return None

    def reading_view(self, find_records):
        """`find_records`, which reads the view where it would use the joins."""

        async def find_records_reading_view(table, *args, **kwargs):
            if self.uses_view and kwargs.get("enable_joins"):
                answer = await find_records(self.twin(table), *args, **kwargs)
                if not is_view_error(answer):
                    return answer
                self.select("the view is missing or not readable")
            return await find_records(table, *args, **kwargs)

        return find_records_reading_view

    def twin(self, table):
        """The same table of the service's, with the rows of the view."""
        twin = object.__new__(self.view)
        vars(twin).update(vars(table))
        return twin


def is_view_error(answer):
    """Whether the service's answer is the database's error about the view."""
    try:
        response = answer[0]
        if response.response_code != 500:
            return False
        return json.loads(response.body)["err_msg"]["pgcode"] in VIEW_ERRORS
    except Exception:
        return False


def fingerprint(service):
    """A hash of the joins' text, independent of table names, cutoff and white space.

    None if the service's runs table has no joins.
    """
    table = service.AsyncRunTablePostgres
    joins, columns = vars(table).get("joins"), vars(table).get("join_columns")
    if not isinstance(joins, list) or not isinstance(columns, list):
        return None
    text = " ".join("\n".join(joins + ["select"] + columns).split())
    text = text.replace(f"<={service.RUN_INACTIVE_CUTOFF_TIME} ", "<={cutoff} ")
    for name, value in (("{runs}", table.table_name), ("{metadata}", service.METADATA_TABLE_NAME)):
        text = re.sub(rf"(?<![\w.]){re.escape(value)}(?!\w)", name, text)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def attach(service):
    """Adds the switch to the service's module, if the fingerprint of its joins is known."""
    if getattr(service, "status_indexer_switch", None):
        return
    found = fingerprint(service)
    if found is None:
        log.warning("inactive: this release of the service has no status filter with joins")
    elif found not in KNOWN_FINGERPRINTS | {os.environ.get("STATUS_INDEXER_PLUGIN_ACCEPT")}:
        log.warning(
            "inactive: the service's joins have the unknown fingerprint %s; "
            "read the plug-in's README before accepting it",
            found,
        )
    else:
        add_switch(service)


def add_switch(service):
    """Wraps two methods of the service: the one that lists runs and the one that opens its pools."""
    switch = Switch(service)
    init = service._AsyncPostgresDB._init

    async def _init(db, *args, **kwargs):
        result = await init(db, *args, **kwargs)
        try:
            # The UI backend shares this base class, but has a runs table of its own.
            if isinstance(db.run_table_postgres, switch.table):
                switch.start_checks(db)
        except Exception as error:
            log_inactive(error)
        return result

    service.status_indexer_switch = switch
    switch.table.find_records = switch.reading_view(switch.table.find_records)
    service._AsyncPostgresDB._init = _init


def log_inactive(error):
    log.warning("inactive: %s", one_line(error))


def one_line(error):
    """The error's type and message in one line."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return f"{kind}: {text[:200]}" if text else kind


class ImportHook:
    """Attaches the plug-in once, when the service's module is imported; the import is unchanged."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != SERVICE_MODULE:
            return None
        try:
            # Removed first, because the search below would call this hook again.
            sys.meta_path.remove(cls)
            spec = importlib.util.find_spec(name)
            attach_after_load(spec)
            return spec
        except Exception as error:
            log_inactive(error)
            return None


def attach_after_load(spec):
    load = spec.loader.exec_module

    def exec_module(module):
        load(module)
        try:
            attach(module)
        except Exception as error:
            log_inactive(error)

    spec.loader.exec_module = exec_module


def install():
    """Called before the service is imported. `STATUS_INDEXER_PLUGIN=off` disables the plug-in."""
    if os.environ.get("STATUS_INDEXER_PLUGIN", "on").lower() not in ("off", "0", "false", "no"):
        if ImportHook not in sys.meta_path and SERVICE_MODULE not in sys.modules:
            sys.meta_path.insert(0, ImportHook)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m status_indexer_plugin MODULE [ARGUMENT ...]")
    install()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
