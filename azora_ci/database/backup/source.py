"""Production's side of a backup: one exported snapshot, facts about the server, and row counts on that snapshot."""

from __future__ import annotations

import threading
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING

from azora_ci.core.clock import rfc3339
from azora_ci.core.errors import AzoraError, BadInputError, NotTrueError
from azora_ci.database.backup import catalog, messages
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.database.server import session_error
from azora_ci.database.session import settle

if TYPE_CHECKING:
    import psycopg2.extensions

COUNTERS = 2  # sessions that count rows during the dump


class Snapshot:
    """An exported snapshot: a context manager whose separate session holds the snapshot open."""

    def __init__(self, url: DatabaseUrl, *, wait_seconds: float) -> None:
        self._url = url
        self._wait = wait_seconds
        self._connection: psycopg2.extensions.connection | None = None
        self.id = ""
        self.lsn: str | None = None
        self.isolation = "serializable, read only, deferrable"
        self.catalog = catalog.Catalog((), {}, frozenset(), frozenset(), 0)
        self.time = ""

    def __enter__(self) -> Snapshot:
        import psycopg2

        self._connection = self._url.connect(application="azora-ci snapshot")
        try:
            with self._connection.cursor() as cursor:
                self._export(cursor)
        except psycopg2.errors.QueryCanceled as error:
            self.close()
            raise BadInputError(
                "No safe snapshot in time",
                what=f"the server gave none within {self._wait:.0f} s: serializable transactions that write kept running",
                where=self._url.location,
                next_step="end long serializable transactions (pg_stat_activity), then re-run the job",
            ) from error
        except psycopg2.Error as error:
            self.close()
            raise session_error(self._url, error) from error
        return self

    def _export(self, cursor: psycopg2.extensions.cursor) -> None:
        settle(cursor)
        cursor.execute("SELECT pg_is_in_recovery()")
        standby = (cursor.fetchone() or (False,))[0]
        cursor.execute(f"SET statement_timeout = {int(self._wait * 1000)}")
        if standby:  # a standby has no serializable transactions
            self.isolation = "repeatable read, read only, on a standby"
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        else:
            cursor.execute("BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE")
        lsn = "pg_last_wal_replay_lsn()" if standby else "pg_current_wal_lsn()"
        cursor.execute(f"SELECT pg_export_snapshot(), {lsn}::text, clock_timestamp()")
        self.id, self.lsn, moment = cursor.fetchone() or ("", None, None)
        assert isinstance(moment, datetime)  # noqa: S101 - clock_timestamp() is never NULL
        self.time = rfc3339(moment)
        self.catalog = catalog.read(cursor)
        cursor.execute("SET statement_timeout = 0")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the snapshot."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def session(self, timeout_seconds: float) -> psycopg2.extensions.connection:
        """Return another session that sees the same snapshot; each of its statements may take ``timeout_seconds``."""
        connection = self._url.connect(application="azora-ci counts")
        with connection.cursor() as cursor:
            settle(cursor, statement_timeout=str(int(timeout_seconds * 1000)))
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            cursor.execute("SET TRANSACTION SNAPSHOT %s", (self.id,))
        return connection


class Counter:
    """Counts on the snapshot the rows that the dump is to hold of every table, in separate sessions while the dump runs."""

    def __init__(self, snapshot: Snapshot, url: DatabaseUrl, *, timeout_seconds: float) -> None:
        self._snapshot = snapshot
        self._url = url
        self._timeout = timeout_seconds
        everything = {**dict.fromkeys(snapshot.catalog.tables), **snapshot.catalog.filters}
        self._uncounted = list(reversed(everything.items()))
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._connections: list[psycopg2.extensions.connection] = []
        self._failure: tuple[catalog.Table, Exception] | None = None
        self.counts: dict[catalog.Table, int] = {}

    def start(self) -> None:
        """Begin counting. Call it while the snapshot is open."""
        for _ in range(min(COUNTERS, len(self._uncounted))):
            connection = self._snapshot.session(self._timeout)
            self._connections.append(connection)
            thread = threading.Thread(target=self._count, args=(connection,), name="counts", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _count(self, connection: psycopg2.extensions.connection) -> None:
        try:
            with connection.cursor() as cursor:
                while (next_table := self._next_table()) is not None:
                    self._count_rows(cursor, *next_table)
        finally:
            connection.close()

    def _count_rows(self, cursor: psycopg2.extensions.cursor, table: catalog.Table, condition: str | None) -> None:
        rows = f"ONLY {catalog.quoted_name(table)}" if condition is None else f"{catalog.quoted_name(table)} {condition}"
        try:
            cursor.execute(f"SELECT count(*) FROM {rows}")  # noqa: S608 - a quoted name, and the condition that pg_dump uses
            self.counts[table] = int((cursor.fetchone() or (0,))[0])
        except Exception as error:
            self._failure = (table, error)

    def _next_table(self) -> tuple[catalog.Table, str | None] | None:
        with self._lock:
            return self._uncounted.pop() if self._uncounted and self._failure is None else None

    def result(self) -> dict[catalog.Table, int]:
        """Wait for the end and return the row count of every table. Raises the error of a count that failed."""
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            raise self._error(*self._failure)
        return self.counts

    def _error(self, table: catalog.Table, error: Exception) -> AzoraError:
        """Return the error for a count that failed; an expression of the table's that needs a search_path fails here before a restore."""
        step = messages.next_step(f"ERROR:  {error}")  # libpq adds the context to the message, as psql does
        if step is None:
            return session_error(self._url, error)
        return NotTrueError(
            "A table's expression works with a search_path only",
            what=f"counting the rows of {catalog.quoted_name(table)}: {str(error).splitlines()[0]}",
            where=f"{self._url.location}, table {'.'.join(table)}",
            next_step=step,
        )

    def cancel(self) -> None:
        """Stop counting."""
        self._uncounted.clear()
        for connection in self._connections:
            if not connection.closed:
                connection.cancel()
        for thread in self._threads:
            thread.join(timeout=2)
