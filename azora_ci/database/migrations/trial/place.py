"""The place where migrations are tried, and what is tried beside them: the copy as the application sees it, and what its server says."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from azora_ci.core.process.isolation import Door
from azora_ci.database.migrations import catalogue, variables
from azora_ci.database.migrations.catalogue import HISTORY
from azora_ci.database.migrations.history import Migration
from azora_ci.database.migrations.session import session
from azora_ci.database.migrations.trial import server_log
from azora_ci.database.migrations.trial.copy import SCHEMA, Copy, Relation
from azora_ci.database.postgres import DatabaseUrl

_END = """SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE usename = current_user AND datname = current_database() AND pid <> pg_backend_pid()"""
_SETTLED_SECONDS = 10.0


@dataclass(frozen=True)
class Place:
    """A copy for code of the application: its address as the role of production's has it, as a URL and as text, and the door to it."""

    copy: Copy
    url: DatabaseUrl
    address: str
    door: Door

    def environment(self, names: Mapping[str, str]) -> dict[str, str]:
        """Return variable -> value for ``names``, variable -> form."""
        return variables.environment(names, self.address, self.url)

    def catalogue(self) -> frozenset[str]:
        """Return what the copy defines, without what notes its statements. Raises UnreachableError."""
        return lines(self.url)

    def mark(self) -> int:
        """Return a place in the server's log: what follows is later."""
        return self.copy.log.stat().st_size

    def account(self, mark: int, earlier: Mapping[int, Relation], migrations: Sequence[Migration], known: str) -> server_log.Account:
        """Return what the server's log says of the role since a mark. The others are those of ``server_log.read``."""
        with self.copy.log.open("rb") as log:
            log.seek(mark)
            text = io.TextIOWrapper(log, encoding="utf-8", errors="replace", newline="")
            return server_log.read(text, self.copy.role, earlier, migrations, known)

    def settle(self) -> None:
        """End the sessions that the application left: they may hold locks, and what they do stands in the log. Raises UnreachableError."""
        with session(self.url) as cursor:
            for _ in range(round(_SETTLED_SECONDS / 0.05)):
                cursor.execute(_END)
                if cursor.fetchone() == (0,):
                    return
                cursor.execute("SELECT pg_sleep(0.05)")


class Companion(Protocol):
    """What is tried beside migrations, on the same copy: once before they are applied, and once after they passed."""

    def before(self, place: Place) -> None:
        """Try it on the copy that is not migrated. What goes wrong is kept, never raised."""

    def after(self, place: Place, known: str) -> None:
        """Try it on the migrated copy. ``known``: what messages of the server may quote. What goes wrong is kept, never raised."""


def lines(url: DatabaseUrl) -> frozenset[str]:
    """Return what a copy defines, without what notes its statements."""
    return frozenset(line for line in without_histories(catalogue.read(url)) if SCHEMA not in line)


def without_histories(lines: Iterable[str]) -> frozenset[str]:
    """Return a catalogue's lines without those of histories' rows: they hold times."""
    return frozenset(line for line in lines if not line.startswith(HISTORY))
