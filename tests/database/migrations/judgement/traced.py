"""The table of statements, and what PostgreSQL really does with each: locks of pg_locks, files of tables that are others afterwards."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import psycopg2.extensions

from azora_ci.database.migrations.judgement.model import Lock, Statement

FOLDER = Path(__file__).parent
PRODUCTION = (FOLDER / "production.sql").read_text(encoding="utf-8")
KINDS = (FOLDER / "kinds.txt").read_text(encoding="utf-8").splitlines()[1:]
RELEASES = (FOLDER / "releases.txt").read_text(encoding="utf-8").splitlines()[1:]
_RELATIONS = """SELECT c.oid, concat(nullif(nspname, 'public') || '.', relname), relkind::text, pg_relation_filenode(c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' AND relkind IN ('r', 'p', 'm', 'v', 'f')"""
_HELD = "SELECT relation, mode FROM pg_locks WHERE pid = %s AND locktype = 'relation'"


@dataclass(frozen=True)
class Case:
    """A line of the table."""

    verdict: str
    locks: dict[str, str]
    rewrites: set[str]
    sql: str
    alone: bool = False
    since: int = 0


def cases() -> list[Case]:
    lines = (FOLDER / "statements.txt").read_text(encoding="utf-8").splitlines()
    return [_case(line) for line in lines if not line.startswith("#")]


def _case(line: str) -> Case:
    verdict, locks, rewrites, sql = line.split(" | ", 3)
    since, _, rest = sql.partition(" ")
    since, sql = (int(since), rest) if since.isdigit() else (0, sql)
    held = dict(lock.split(" ", 1) for lock in locks.split(", ") if locks != "-")
    return Case(verdict, held, set(rewrites.split(", ")) - {"-"}, sql.removeprefix("!"), sql.startswith("!"), since)


def predicted(statements: list[Statement]) -> tuple[dict[str, str], set[str]]:
    """Return the locks and rewritten tables that the judgement expects of several statements in one transaction."""
    locks: dict[str, Lock] = {}
    for statement in statements:
        for name, lock in statement.locks.items():
            locks[name] = max(lock, locks.get(name, lock))
    return _strong(locks), set().union(*(statement.rewrites for statement in statements))


def _strong(locks: dict[str, Lock]) -> dict[str, str]:
    return {name: str(lock) for name, lock in locks.items() if lock >= Lock.ROW_EXCLUSIVE}


class Tracer:
    """Runs statements on a database with the relations of production.sql, and takes each back."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection = psycopg2.connect(url)

    def close(self) -> None:
        self.connection.close()

    def trace(self, case: Case) -> tuple[dict[str, str], set[str]]:
        with self.connection.cursor() as cursor:
            try:
                before = self._relations(cursor)
                cursor.execute(case.sql)
                cursor.execute(_HELD, (self.connection.get_backend_pid(),))
                locks = _by_name(before, cursor.fetchall())
                after = self._relations(cursor)
                written = {name for oid, (name, kind, file) in before.items() if kind in "rm" and oid in after and after[oid][2] != file}
                return locks, written
            finally:
                self.connection.rollback()

    def first_lock(self, case: Case, table: str) -> dict[str, str]:
        """Return the lock of ``table`` that a statement waits for which no transaction may hold; it is cancelled then."""
        with self.connection.cursor() as cursor, psycopg2.connect(self.url) as holder:
            before = self._relations(cursor)
            holder.cursor().execute(f"LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE")
            waiting = psycopg2.connect(self.url)
            waiting.autocommit = True
            thread = threading.Thread(target=_run, args=(waiting, case.sql))
            thread.start()
            try:
                deadline = time.monotonic() + 30
                while time.monotonic() < deadline and thread.is_alive():
                    cursor.execute(f"{_HELD} AND NOT granted", (waiting.get_backend_pid(),))
                    if locks := _by_name(before, cursor.fetchall()):
                        return locks
                    self.connection.rollback()
                    time.sleep(0.005)
                return {}
            finally:
                self.connection.rollback()
                waiting.cancel()
                thread.join()
                holder.rollback()
                waiting.close()

    @staticmethod
    def _relations(cursor: psycopg2.extensions.cursor) -> dict[int, tuple[str, str, int | None]]:
        cursor.execute(_RELATIONS)
        return {oid: (name, kind, file) for oid, name, kind, file in cursor.fetchall()}


def _run(connection: psycopg2.extensions.connection, sql: str) -> None:
    with contextlib.suppress(psycopg2.extensions.QueryCanceledError):
        connection.cursor().execute(sql)


def _by_name(relations: dict[int, tuple[str, str, int | None]], held: list[tuple[int, str]]) -> dict[str, str]:
    modes = {f"{str(lock).title().replace(' ', '')}Lock": lock for lock in Lock}
    locks: dict[str, Lock] = {}
    for oid, mode in held:
        if oid in relations:
            name = relations[oid][0]
            locks[name] = max(modes[mode], locks.get(name, modes[mode]))
    return _strong(locks)
