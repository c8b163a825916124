"""What surrounds the migrate command in production: timeouts that reach the server, a lock against other deployments, and a watch."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode

from azora_ci.core.clock import Clock, rfc3339
from azora_ci.core.errors import NotTrueError, UnreachableError
from azora_ci.database.migrations import catalogue, prisma
from azora_ci.database.migrations.aftermath import Before, Database
from azora_ci.database.migrations.catalogue import Change
from azora_ci.database.migrations.history import Migration
from azora_ci.database.postgres import DatabaseUrl

if TYPE_CHECKING:
    import psycopg2.extensions

APPLICATION = "azora-ci migrate"  # by which the sessions of the command are known
LOCK = 0x617A6F72  # the advisory lock of deployments, "azor"
SAMPLE_SECONDS = 0.2
MOST = 200
TIMED_OUT = re.compile(r"canceling statement due to lock timeout|\b55P03\b")
# A migration in which none of these words stands only defines: it leaves a trace in the catalogue wherever it was applied.
_MAY_CHANGE_ROWS = re.compile(
    r"\b(INSERT|UPDATE|DELETE|MERGE|TRUNCATE|COPY|SELECT|DO|CALL|EXECUTE|REFRESH|NEXTVAL|SETVAL)\b", re.IGNORECASE
)
_WHO = """SELECT pid, coalesce(nullif(application_name, ''), 'no name'), coalesce(client_addr::text, 'local'), backend_start,
    coalesce(state, 'unknown') FROM pg_stat_activity WHERE pid = ANY(%s)"""
_UNLIMITED = """SELECT set_config(name, '0', true) FROM pg_settings
    WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout', 'idle_session_timeout')"""
_RUNNING = """SELECT pid, query_start, extract(epoch FROM clock_timestamp() - query_start)::float, query,
    CASE wait_event_type WHEN 'Lock' THEN pg_blocking_pids(pid) ELSE '{}' END
    FROM pg_stat_activity WHERE application_name = %s AND state = 'active' AND pid <> pg_backend_pid()
    AND datname = current_database()"""


@dataclass(frozen=True)
class Timeouts:
    """Seconds that a statement of a migration may wait for a lock, and may take."""

    lock: float
    statement: float

    @property
    def settings(self) -> tuple[str, ...]:
        """Return them as settings of the server."""
        return (f"lock_timeout={round(self.lock * 1000)}", f"statement_timeout={round(self.statement * 1000)}")

    def refused_at(self, url: DatabaseUrl) -> str | None:
        """Return why these timeouts do not reach the server at an address, None where they do: a session that asks for them is tried.

        A pooler may refuse such a session, or lend it a connection that knows nothing of them.
        """
        try:
            with closing(self.of(url).connect()) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT name || '=' || setting FROM pg_settings WHERE name IN ('lock_timeout', 'statement_timeout')")
                found = {setting for (setting,) in cursor.fetchall()}
        except UnreachableError as error:
            return f"a session that asks for them is refused: {error.what.partition(chr(10))[0]}"
        return None if set(self.settings) <= found else "the server's session does not have them: a pooler drops them"

    def of(self, url: DatabaseUrl) -> DatabaseUrl:
        """Return the same connection with these timeouts, under the name ``APPLICATION``."""
        limited = url.with_options(self.settings)
        return DatabaseUrl(**{**vars(limited), "parameters": {**limited.parameters, "application_name": APPLICATION}})

    def within(self, address: str) -> str:
        """Return a connection string with them, whatever else it says."""
        location, _, query = address.partition("?")
        given = dict(parse_qsl(query, keep_blank_values=True))
        options = " ".join([*filter(None, [given.get("options")]), *(f"-c {setting}" for setting in self.settings)])
        return f"{location}?{urlencode({**given, 'options': options, 'application_name': APPLICATION}, quote_via=quote)}"


def only_defines(migrations: Iterable[Migration]) -> bool:
    """Return whether migrations change no row by themselves, so that an unchanged catalogue says that nothing of them was applied."""
    return not any(_MAY_CHANGE_ROWS.search(migration.text) for migration in migrations)


def nothing_applied(database: Database, before: Before, say: Callable[[str], None]) -> bool:
    """Return whether an attempt certainly applied nothing; then take back Prisma's note that it failed, which would refuse the next one.

    Raises UnreachableError.
    """
    rows = database.rows()
    failed = [row for row in rows if row.failed]
    applied = {row.name for row in rows if row.applied} - {row.name for row in before.plan.applied}
    if applied or (failed and not only_defines(before.plan.pending)) or Change.between(before.catalogue, catalogue.read(database.url)):
        return False
    for row in failed:
        prisma.mark_rolled_back(database.url, database.schema, row.name)
        say(f"nothing of {row.name} was applied: marked as rolled back, as npx prisma migrate resolve --rolled-back does")
    return True


@contextmanager
def deployment_lock(url: DatabaseUrl, name: str, warn: Callable[[str, str], None]) -> Iterator[None]:
    """Hold this project's advisory lock in the database during the block. Raises NotTrueError when another deployment has it.

    It is held by a transaction, not by the session: a pooler keeps a session, and the lock with it, after we have gone. That transaction
    keeps no snapshot, for which CREATE INDEX CONCURRENTLY would wait. ``warn`` (title, text) is called when the lock was lost meanwhile.
    """
    import psycopg2

    connection = url.connect(application=name, autocommit=False, keepalives_idle=30, keepalives_interval=10)
    with closing(connection), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute(_UNLIMITED)
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", (LOCK,))
        if cursor.fetchone() != (True,):
            cursor.execute(
                "SELECT array_agg(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = 0 AND objid = %s", (LOCK,)
            )
            holders = describe(cursor, (cursor.fetchone() or (None,))[0] or [])
            raise NotTrueError(
                "Another deployment migrates this database",
                what=f"advisory lock {LOCK} is held by {', '.join(holders) or 'nobody any more'}; nothing was applied",
                where=url.location,
                next_step="let that deployment end, or end its session (pg_terminate_backend), then re-run the failed jobs",
            )
        yield
        try:
            cursor.execute("SELECT 1")
        except psycopg2.Error as error:
            warn("The deployment lock was lost", f"its session ended while the migrations ran: {error}. Make sure that no other ran then")


def describe(cursor: psycopg2.extensions.cursor, pids: Sequence[int]) -> list[str]:
    """Return sessions as text: process id, application, address, start, state."""
    cursor.execute(_WHO, (list(pids),))
    return [
        f"process {pid} ({name}, from {where}, since {since:%H:%M:%S %Z}, {state})" for pid, name, where, since, state in cursor.fetchall()
    ]


@dataclass
class Watch:
    """Looks at the command's sessions while the block runs: statements with their start and seconds, and who holds the locks they want.

    A statement that is shorter than the pause between two looks is not seen.
    """

    url: DatabaseUrl
    migrations: Sequence[Migration]
    say: Callable[[str], None]
    clock: Clock = field(default_factory=Clock)
    holders: list[str] = field(default_factory=list)
    _statements: dict[tuple[int, Any], dict[str, Any]] = field(default_factory=dict)

    def __enter__(self) -> Watch:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(5)

    @property
    def statements(self) -> list[dict[str, Any]]:
        """Return what ran, as evidence: start, seconds at the last look, place in the migrations."""
        return list(self._statements.values())[:MOST]

    def _look(self) -> None:
        import psycopg2

        with suppress(UnreachableError, psycopg2.Error):  # the command itself will say so
            connection = self.url.connect(application="azora-ci watch")
            with closing(connection), connection.cursor() as cursor:
                while not self.clock.wait(self._end, SAMPLE_SECONDS):
                    self._sample(cursor)

    def _sample(self, cursor: psycopg2.extensions.cursor) -> None:
        cursor.execute(_RUNNING, (APPLICATION,))
        for pid, began, seconds, query, blocking in cursor.fetchall():
            place = place_of(query, self.migrations)
            if place is not None:
                self._statements[pid, began] = {"at": rfc3339(began), "seconds": round(seconds, 3), "where": place}
            for holder in describe(cursor, blocking) if blocking else ():
                if holder not in self.holders:
                    self.holders.append(holder)
                    self.say(f"waiting for a lock that {holder} holds")


def place_of(query: str, migrations: Sequence[Migration]) -> str | None:
    """Return file and line of a statement, or None where its text is in no migration."""
    text = query.strip().rstrip(";")
    for migration in migrations:
        start = migration.text.find(text) if text else -1
        if start >= 0:
            return f"{migration.name}/migration.sql, line {migration.text.count(chr(10), 0, start) + 1}"
    return None
