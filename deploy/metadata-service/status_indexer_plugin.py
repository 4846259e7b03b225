"""Makes the metadata service and the web UI's backend read run statuses from status-indexer.

Owns one method of each one's runs table, `find_records`. While the indexer's column can be relied on,
listings with a status are answered from it: those of the metadata service from the view
`status_indexer.runs`, those of the UI backend by statements of this file. Otherwise they are answered
by joins of the service's own, which compute the status. The answers are equal: each status is exact in
the snapshot of the query. Promises that the service always starts and answers: every failure here ends
with the service's own joins and one line in its log. Runs in the service's event loop and borrows one
connection of its pool for a short check every few seconds.

Loaded by `sitecustomize.py` beside this file, or by
`python -m status_indexer_plugin services.metadata_service.server`. Needs only the standard library.
"""

import asyncio
import hashlib
import importlib.util
import inspect
import io
import json
import logging
import os
import re
import runpy
import sys
import textwrap
import tokenize

# The modules that define the runs tables of the metadata service and of the UI backend.
SERVICE_MODULE = "services.data.postgres_async_db"
UI_MODULE = "services.ui_backend_service.data.db.tables.run"

# What the service reads instead of its runs table and joins: it has all columns of the table, and
# `status`.
VIEW = "status_indexer.runs"

# Fingerprints of the joins that implement the indexer's definition 1 of a status. Joins with
# another text may define a status differently; the view would then give other answers.
KNOWN_FINGERPRINTS = {"f78c1c98"}
DEFINITION_VERSION = 1

# The same for the UI backend: its joins, and the method that builds its statements.
KNOWN_UI_FINGERPRINTS = {"fc593b64"}

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
       (select bool_and(has_table_privilege(c.oid, 'select'))
          from pg_catalog.pg_class c
         where c.relnamespace = n.oid
           and c.relname in ('runs', 'read_state')
           and c.relkind = 'v'
        having count(*) = 2)
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
       s.keeps_finished_at,
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
        # Whether the indexer keeps the ends of runs, which the UI's listings need.
        self.keeps_finish = False
        # The objection that was logged last, in a tuple; None before the first.
        self.logged = None
        self.failed_checks = 0
        self.loop = None
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
        # The process of the UI backend opens the same database several times.
        if self.loop is loop:
            return
        self.loop = loop

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

    def installation_objection(self, schema_readable, state_readable, views_readable):
        """The objection to the row of INSTALLATION, where None stands for what does not exist."""
        if schema_readable is None or state_readable is None:
            return "the indexer is not installed in this database"
        if views_readable is None:
            return f"the indexer's schema has no view {VIEW}: run `status-indexer migrate up`"
        if not (schema_readable and state_readable and views_readable):
            return (
                "the service's role needs usage on schema status_indexer "
                "and select on its relations state, read_state and runs"
            )
        return None

    def state_objection(self, row):
        """The objection to a row of STATE, which is None if the indexer has no state."""
        if row is None:
            return "status_indexer.state is empty"
        definition_version, reads_version, cutoff_secs, same_table, readable, keeps_finish, pending = row
        self.keeps_finish = keeps_finish
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


class Unsupported(Exception):
    """A listing that is left to the joins."""


class Listings:
    """Answers the listings of the UI backend without its joins.

    A listing is put together from ranges of runs, one for each status, and the pending runs, which are
    evaluated. Listings that the joins answer as fast are left to them.
    """

    def __init__(self, switch, module, service):
        self.switch = switch
        self.table = module.AsyncRunTablePostgres
        self.flows_table_name = service.FLOW_TABLE_NAME
        self.old_run_cutoff = module.OLD_RUN_FAILURE_CUTOFF_TIME
        self.logged = set()

    def log_once(self, text):
        if text not in self.logged:
            self.logged.add(text)
            log.warning("%s", text)

    def reading_column(self, find_records):
        """`find_records`, which answers listings from the column where it can."""

        async def find_records_reading_column(table, *args, **kwargs):
            answer = await self.answer(table, args, kwargs)
            return answer if answer is not None else await find_records(table, *args, **kwargs)

        return find_records_reading_column

    async def answer(self, table, args, kwargs):
        """The answer to a listing, or None where the joins have to give it."""
        # Single runs cost the joins little, and a message about a run must not outrun its status.
        if not kwargs.get("enable_joins") or kwargs.get("fetch_single") or kwargs.get("benchmark") or args:
            return None
        if not self.switch.uses_view:
            return None
        if not self.switch.keeps_finish:
            self.log_once("the web UI's listings use its own joins: run `status-indexer migrate up --ui`")
            return None
        # The first statement has rows only while no run is pending, which is usual. The second takes twice
        # as long, most of it for its plan.
        for pending in (False, True):
            try:
                sql, values = self.statement(table, kwargs, pending)
            except Unsupported:
                return None
            result, pagination = await table.execute_sql(
                select_sql=sql,
                values=values,
                fetch_single=False,
                expanded=kwargs.get("expanded", False),
                limit=kwargs.get("limit") or 0,
                offset=kwargs.get("offset") or 0,
            )
            if result.response_code != 200 or result.body:
                break
        if result.response_code != 200:
            if is_view_error((result,)):
                self.switch.select("the view is missing or not readable")
            else:
                self.log_once("a listing of the web UI failed and is repeated with its own joins")
            return None
        if kwargs.get("groups") and not result.body:
            return result, None, None
        postprocess = kwargs.get("postprocess")
        if postprocess is not None:
            result = postprocess(result, invalidate_cache=kwargs.get("invalidate_cache", False))
            if inspect.isawaitable(result):
                result = await result
        return result, pagination, None

    def statement(self, table, kwargs, pending):
        """The statement of a listing, and its values. `pending`: see `Page`."""
        conditions, values = kwargs.get("conditions") or [], list(kwargs.get("values") or [])
        order = kwargs.get("order") or self.overwritten_order(table, kwargs.get("overwrite_select_from"))
        limit, offset = kwargs.get("limit") or 0, kwargs.get("offset") or 0
        if limit < 0 or offset < 0:
            raise Unsupported
        statuses, rest = self.statuses(conditions, values)
        # Where no more than the columns of the runs table matters, the joins stop with the page.
        computed = len(statuses) < len(STATUSES) or mentions(rest + order, COMPUTED)
        if not computed and limit and not kwargs.get("groups") and not kwargs.get("overwrite_select_from"):
            raise Unsupported
        page = Page(self, table, kwargs, order, statuses if computed else None, pending)
        if kwargs.get("groups"):
            sql, count = self.grouped(page, kwargs, limit, offset)
        else:
            sql, count = page.select(order, limit, offset, gate=page.gate)
            sql = with_queries(page.queries) + sql
        return sql, values * count

    @staticmethod
    def statuses(conditions, values):
        """The statuses that the conditions permit, as far as that is known, and the other conditions."""
        wanted, rest, position = set(STATUSES), [], 0
        for condition in conditions:
            count = condition.count("%s")
            if re.fullmatch(r'\("status" = %s(?: OR "status" = %s)*\)', condition):
                wanted &= set(values[position : position + count])
            else:
                rest.append(condition)
            position += count
        return [status for status in STATUSES if status in wanted], rest

    @staticmethod
    def overwritten_order(table, source):
        """The order of a listing whose caller has put it into the source of the rows."""
        if not source:
            return []
        name = re.escape(table.table_name)
        found = re.fullmatch(rf"\(SELECT \* FROM {name} ORDER BY (.*)\) AS {name}", source)
        if not found:
            raise Unsupported
        return [found[1]]

    def grouped(self, page, kwargs, limit, offset):
        """The newest runs of each group, of flows or of users, and how many times the conditions occur."""
        groups, group_limit, order = kwargs["groups"], kwargs.get("group_limit") or 0, page.order
        if kwargs.get("overwrite_select_from"):
            raise Unsupported
        name = page.name
        if groups == ['"flow_id"']:
            own, labels = f"{name}.flow_id", f"labels AS (SELECT f.flow_id AS label FROM {self.flows_table_name} f)"
        elif groups == ['"user"']:
            # Each step finds the next user by one look at the index on this expression. Runs without a
            # user are in no group.
            own = (
                f"(CASE WHEN {name}.system_tags ? ('user:' || {name}.user_name)"
                f" THEN {name}.user_name ELSE NULL END)"
            )
            labels = (
                f"labels AS ((SELECT {own} AS label FROM {name} WHERE {own} IS NOT NULL ORDER BY 1 LIMIT 1)"
                f" UNION ALL SELECT (SELECT {own} FROM {name} WHERE {own} > l.label ORDER BY 1 LIMIT 1)"
                " FROM labels l WHERE l.label IS NOT NULL)"
            )
        else:
            raise Unsupported
        one, one_count = page.select([], 1, 0, own=f"{own} = l.label")
        runs, runs_count = page.select(order, group_limit, 0, own=f"{own} = g.label")
        chosen = (
            "chosen AS MATERIALIZED (SELECT l.label FROM labels l"
            f" WHERE l.label IS NOT NULL AND EXISTS ({one}) ORDER BY l.label"
            f"{f' LIMIT {limit}' if limit else ''}{f' OFFSET {offset}' if offset else ''})"
        )
        sql = (
            with_queries(page.queries + [labels, chosen])
            + f"SELECT r.* FROM chosen g CROSS JOIN LATERAL ({runs}) r{page.gate}"
            f" ORDER BY {', '.join(['g.label'] + order)}"
        )
        return sql, one_count + runs_count


class Page:
    """Builds the select of a page: the conditions, order and limit are in each of its parts.

    `pending` selects whether pending runs are evaluated; otherwise the page has rows only while there
    are none.
    """

    def __init__(self, listings, table, kwargs, order, statuses, pending):
        self.old_run_cutoff = listings.old_run_cutoff
        self.name = table.table_name
        self.columns = list(table.select_columns)
        self.conditions = conditions = kwargs.get("conditions") or []
        self.order = order
        # The statuses with a part each; None where one part serves all of them.
        self.statuses = statuses
        self.pending = pending
        # The queries that the select reads, and the condition of its outermost level.
        self.queries = [PENDING] if pending else []
        self.gate = "" if pending else EXACT
        # Whether a part reads the runs of one flow.
        self.by_flow = kwargs.get("groups") == ['"flow_id"'] or any(
            re.fullmatch(r'\(?"?flow_id"? = %s\)?', condition) for condition in conditions
        )
        # Whether the order or a condition concerns the ends of runs, for which there are indexes.
        self.ends_matter = mentions(conditions + order, ('"finished_at"', '"duration"'))

    def select(self, order, limit, offset, own=None, gate=""):
        """The select, and how many times it contains the conditions. `own` selects the runs of a group."""
        where = f" WHERE {' AND '.join(self.conditions)}" if self.conditions else ""
        order_by = f" ORDER BY {', '.join(order)}" if order else ""
        part_limit = f" LIMIT {limit + offset}" if limit else ""
        own = [own] if own else []
        sources = [self.exact_runs(own)] if self.statuses is None else self.ranges(own)
        if self.pending:
            sources.append(self.pending_runs(own))
        parts = [f"(SELECT * FROM ({source}) T{where}{order_by}{part_limit})" for source in sources]
        sql = (
            f"SELECT * FROM ({' UNION ALL '.join(parts)}) U{gate}{order_by}"
            f"{f' LIMIT {limit}' if limit else ''}{f' OFFSET {offset}' if offset else ''}"
        )
        return sql, len(parts)

    def ranges(self, own):
        """The runs whose column is exact, by their statuses, and by whether their ends are known."""
        name = self.name
        ended = f"({name}.run_finished_at - {name}.ts_epoch)"
        # The indexes for the runs of all flows have the collation "C", so that no other statement uses
        # them. Those for the runs of one flow serve the order by their start only.
        collation = "" if self.by_flow and not self.ends_matter else ' COLLATE "C"'
        ranges = []
        for status in self.statuses:
            conditions = [f"{name}.run_status{collation} = '{status}'"] + self.not_pending() + own
            status_text = f"'{status}'::text"
            if status == "running":
                ranges.append(self.runs("null::bigint", status_text, self.running_duration(), name, conditions))
                continue
            finish = f"{name}.run_finished_at"
            if status == "completed" or self.ends_matter:
                known = conditions + ([f"{ended} IS NOT NULL"] if self.ends_matter else [])
                ranges.append(self.runs(finish, status_text, ended, name, known))
            if status == "failed" and self.ends_matter:
                unknown = conditions + [f"{ended} IS NULL"]
                ranges.append(self.runs("null::bigint", status_text, self.unknown_duration(), name, unknown))
            elif status == "failed":
                duration = f"(CASE WHEN {finish} IS NOT NULL THEN {ended} ELSE {self.unknown_duration()} END)"
                ranges.append(self.runs(finish, status_text, duration, name, conditions))
        return ranges

    def exact_runs(self, own):
        """The runs whose column is exact, of all statuses."""
        status, finish = f"{self.name}.run_status", f"{self.name}.run_finished_at"
        return self.runs(finish, status, self.duration(status, finish), self.name, self.not_pending() + own)

    def pending_runs(self, own):
        """The runs whose column may not be exact, evaluated."""
        name = self.name
        source = (
            f"pending p JOIN {name} ON {name}.flow_id = p.pending_flow AND {name}.run_number = p.pending_run"
            " CROSS JOIN LATERAL status_indexer.status_now("
            f"p.pending_flow, p.pending_run, {name}.last_heartbeat_ts::bigint) e"
        )
        return self.runs("e.finished_at", "e.status", self.duration("e.status", "e.finished_at"), source, own)

    def runs(self, finish, status, duration, source, conditions):
        columns = self.columns + [f"{finish} AS finished_at", f"{status} AS status", f"{duration} AS duration"]
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        return f"SELECT {', '.join(columns)} FROM {source}{where}"

    def not_pending(self):
        """The conditions that leave out the pending runs."""
        if not self.pending:
            return []
        return [
            f"({self.name}.flow_id::text, {self.name}.run_number::bigint)"
            " NOT IN (SELECT p.pending_flow, p.pending_run FROM pending p)"
        ]

    def duration(self, status, finish):
        return (
            f"(CASE WHEN {finish} IS NOT NULL THEN {finish} - {self.name}.ts_epoch"
            f" WHEN {status} = 'running' THEN {self.running_duration()}"
            f" ELSE {self.unknown_duration()} END)"
        )

    def running_duration(self):
        # Without a heartbeat it is being retried, and the joins count up to its last attempt.
        name = self.name
        return (
            f"(CASE WHEN {name}.last_heartbeat_ts IS NOT NULL THEN {name}.last_heartbeat_ts*1000-{name}.ts_epoch"
            f" ELSE status_indexer.newest_ok_ts({name}.flow_id::text, {name}.run_number::bigint)"
            f" - {name}.ts_epoch END)"
        )

    def unknown_duration(self):
        # Without a heartbeat and without an end: from its start until now, as in the joins.
        age = f"@(extract(epoch from now())::bigint*1000-{self.name}.ts_epoch)"
        return f"(CASE WHEN {age} > {self.old_run_cutoff} THEN NULL ELSE {age} END)"


def with_queries(queries):
    """The beginning of a statement that reads named queries."""
    return f"WITH RECURSIVE {', '.join(queries)} " if queries else ""


def mentions(texts, names):
    """Whether one of the texts contains one of the names."""
    return any(name in text for text in texts for name in names)


STATUSES = ("running", "completed", "failed")

# The runs whose column may not be exact, for a statement that evaluates them.
PENDING = (
    "pending AS MATERIALIZED ("
    "SELECT p.flow_id AS pending_flow, p.run_number AS pending_run FROM status_indexer.pending() p)"
)

# The condition of a statement that evaluates none.
EXACT = " WHERE (SELECT s.column_is_exact FROM status_indexer.read_state s)"

# The columns of the UI's listings that the joins compute.
COMPUTED = ('"status"', '"finished_at"', '"duration"')


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
    return short_hash(normalized("\n".join(joins + ["select"] + columns), table, service))


def normalized(text, table, service):
    """The text of joins without what differs between sites."""
    text = " ".join(text.split())
    text = text.replace(f"<={service.RUN_INACTIVE_CUTOFF_TIME} ", "<={cutoff} ")
    for name, value in (("{runs}", table.table_name), ("{metadata}", service.METADATA_TABLE_NAME)):
        text = re.sub(rf"(?<![\w.]){re.escape(value)}(?!\w)", name, text)
    return text


def ui_fingerprint(module, service):
    """A hash of what the UI backend's listings are made of: its joins, and the method that uses them."""
    table = module.AsyncRunTablePostgres
    text = "\n".join(table.joins + ["select"] + table.join_columns)
    text = text.replace(f">{module.OLD_RUN_FAILURE_CUTOFF_TIME}\n", ">{old_run_cutoff}\n")
    return short_hash(normalized(text, table, service) + code_of(table.find_records))


def code_of(function):
    """The source of a function without comments, white space and commas, which formatters change."""
    source = textwrap.dedent(inspect.getsource(function))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    kept = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)
    words = (token.string for token in tokens if token.type in kept and token.string not in ",()")
    return " ".join(" ".join(words).replace("'", '"').split())


def short_hash(text):
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
            if db.run_table_postgres is not None:
                switch.start_checks(db)
        except Exception as error:
            log_inactive(error)
        return result

    service.status_indexer_switch = switch
    switch.table.find_records = switch.reading_view(switch.table.find_records)
    service._AsyncPostgresDB._init = _init


def attach_ui(module):
    """Wraps the listings of the UI backend, if their fingerprint is known."""
    service = sys.modules.get(SERVICE_MODULE)
    switch = getattr(service, "status_indexer_switch", None)
    if switch is None or getattr(module, "status_indexer_listings", None):
        return
    found = ui_fingerprint(module, service)
    if found not in KNOWN_UI_FINGERPRINTS | {os.environ.get("STATUS_INDEXER_PLUGIN_ACCEPT_UI")}:
        log.warning(
            "inactive for the web UI: its listings have the unknown fingerprint %s; "
            "read the plug-in's README before accepting it",
            found,
        )
        return
    listings = Listings(switch, module, service)
    module.status_indexer_listings = listings
    listings.table.find_records = listings.reading_column(listings.table.find_records)


def log_inactive(error):
    log.warning("inactive: %s", one_line(error))


def one_line(error):
    """The error's type and message in one line."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return f"{kind}: {text[:200]}" if text else kind


class ImportHook:
    """Attaches the plug-in to a module once, when it is imported; the import is unchanged."""

    def __init__(self, module, attach_to):
        self.module = module
        self.attach_to = attach_to

    def find_spec(self, name, path=None, target=None):
        if name != self.module:
            return None
        try:
            # Removed first, because the search below would call this hook again.
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            attach_after_load(spec, self.attach_to)
            return spec
        except Exception as error:
            log_inactive(error)
            return None


def attach_after_load(spec, attach_to):
    load = spec.loader.exec_module

    def exec_module(module):
        load(module)
        try:
            attach_to(module)
        except Exception as error:
            log_inactive(error)

    spec.loader.exec_module = exec_module


def install():
    """Called before the service is imported. `STATUS_INDEXER_PLUGIN=off` disables the plug-in."""
    if os.environ.get("STATUS_INDEXER_PLUGIN", "on").lower() not in ("off", "0", "false", "no"):
        if SERVICE_MODULE not in sys.modules and not any(isinstance(hook, ImportHook) for hook in sys.meta_path):
            sys.meta_path[:0] = [ImportHook(SERVICE_MODULE, attach), ImportHook(UI_MODULE, attach_ui)]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m status_indexer_plugin MODULE [ARGUMENT ...]")
    install()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
