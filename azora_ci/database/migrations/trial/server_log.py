"""What a server's log says of the statements of one role, without any value of a row. Pure.

The log is CSV (https://www.postgresql.org/docs/current/runtime-config-logging.html, 19.8.4). ``copy.prepare`` gives each statement of DDL
a line there; others are known by their duration. Their text is compared with the migrations and never kept.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from azora_ci.core.documents import read_json
from azora_ci.database.migrations.guard import place_of
from azora_ci.database.migrations.history import Migration
from azora_ci.database.migrations.trial.copy import MARK, Relation

USER, SESSION, TAG, TRANSACTION, SEVERITY, SQLSTATE, MESSAGE, CONTEXT, QUERY, POSITION = 1, 5, 7, 9, 11, 12, 13, 18, 19, 20
_DURATION = re.compile(r"duration: ([0-9.]+) ms  (?:statement|execute [^:]*): ", re.DOTALL)
# Of no interest unless they take long.
_QUIET = frozenset(
    {"SELECT", "BEGIN", "COMMIT", "ROLLBACK", "SET", "SHOW", "RESET", "DISCARD ALL", "DEALLOCATE", "SAVEPOINT", "RELEASE", ""}
)
_LONG_SECONDS = 1.0
_OWN_TABLE = "_prisma_migrations"
_FOLLOWS = "25P02"  # "current transaction is aborted": it follows another error
# Modes of locks by what others cannot do meanwhile. https://www.postgresql.org/docs/current/explicit-locking.html
NOBODY_READS = "AccessExclusiveLock"
NOBODY_WRITES = frozenset({"ShareLock", "ShareRowExclusiveLock", "ExclusiveLock"})
_PIECE = re.compile(r"""("[^"]*"|'[^']*'|["'])""")  # quoted text, or a quote without an end


@dataclass(frozen=True)
class Statement:
    """A statement that the server carried out. ``locks``: (table, mode) that its transaction gained by it, of tables that were there.

    ``gained`` and ``lost``: lines of the catalogue. ``where``: file and line, where its text is in the migrations.
    """

    tag: str
    objects: tuple[str, ...]
    seconds: float
    locks: tuple[tuple[str, str], ...] = ()
    transaction: tuple[str, str] = ("", "")
    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    where: str | None = None

    def describe(self) -> str:
        """Return its tag and objects."""
        return f"{self.tag} ({', '.join(self.objects)})" if self.objects else self.tag


@dataclass(frozen=True)
class Refused:
    """A statement that the server refused: SQLSTATE, its message without values, and where the statement is in the migrations."""

    sqlstate: str
    message: str
    where: str

    def describe(self) -> str:
        """Return a sentence."""
        return f"{self.message} (SQLSTATE {self.sqlstate}), {self.where}"


@dataclass(frozen=True)
class Account:
    """All that a log says of a role, in order. ``sessions``: whether any statement of it came that far."""

    statements: tuple[Statement, ...]
    refused: tuple[Refused, ...]
    sessions: bool

    @property
    def blocked(self) -> list[dict[str, Any]]:
        """Return the tables that others could not read or not write, with the strongest mode and the seconds until it was released."""
        blocked: dict[str, dict[str, Any]] = {}
        for number, statement in enumerate(self.statements):
            held = sum(other.seconds for other in self.statements[number:] if other.transaction == statement.transaction)
            for table, mode in statement.locks:
                entry = blocked.setdefault(table, {"table": table, "mode": mode, "seconds": 0.0})
                entry["seconds"] = round(max(entry["seconds"], held), 3)
                entry["mode"] = NOBODY_READS if NOBODY_READS in {mode, entry["mode"]} else entry["mode"]
        return sorted(blocked.values(), key=lambda entry: (entry["mode"] != NOBODY_READS, -entry["seconds"], entry["table"]))


@dataclass
class _Session:
    last: float = 0.0
    noted: bool = False
    dropped: list[str] = field(default_factory=list)
    unplaced: list[int] = field(default_factory=list)  # statements of which the text was not seen yet
    held: dict[str, set[tuple[int, str]]] = field(default_factory=dict)  # transaction -> locks


def read(lines: Iterable[str], role: str, relations: Mapping[int, Relation], migrations: Sequence[Migration], known: str) -> Account:
    """Return what the log says of a role. ``relations`` are those of before; a message may quote what is in ``known``, nothing else."""
    csv.field_size_limit(1 << 30)
    statements: list[Statement] = []
    refused: list[Refused] = []
    sessions: dict[str, _Session] = {}
    for row in csv.reader(lines):
        if len(row) <= POSITION or row[USER] != role:
            continue
        session = sessions.setdefault(row[SESSION], _Session())
        if row[MESSAGE].startswith(MARK) and row[SEVERITY] == "LOG":
            note = read_json(row[MESSAGE].removeprefix(MARK))
            if "dropped" in note:
                session.dropped += note["dropped"] or ()
            else:
                session.unplaced.append(len(statements))
                statements.append(_of_note(note, session, (row[SESSION], row[TRANSACTION]), relations))
        elif matched := _DURATION.match(row[MESSAGE]):
            seconds = float(matched[1]) / 1000
            interesting = seconds >= _LONG_SECONDS or (row[TAG] not in _QUIET and _OWN_TABLE not in row[MESSAGE])
            if interesting and not session.noted:
                session.unplaced.append(len(statements))
                statements.append(Statement(row[TAG], (), round(seconds, 3), (), (row[SESSION], row[TRANSACTION])))
            place = place_of(row[MESSAGE][matched.end() :], migrations)
            for number in session.unplaced:
                statements[number] = replace(statements[number], where=place)
            session.noted, session.unplaced = False, []
        elif row[SEVERITY] == "ERROR" and row[SQLSTATE] != _FOLLOWS:
            where = _where(row[QUERY], row[POSITION], migrations, row[TAG], statements[-1] if session.noted else None)
            refused.append(Refused(row[SQLSTATE], without_values(row[SQLSTATE], row[MESSAGE], row[CONTEXT], known), where))
    return Account(tuple(statements), tuple(refused), bool(sessions))


def _of_note(note: Mapping[str, Any], session: _Session, transaction: tuple[str, str], relations: Mapping[int, Relation]) -> Statement:
    began = max(note["began"], session.last)
    objects = tuple([*(note["objects"] or ()), *dict.fromkeys(session.dropped)][:5])
    held = session.held.setdefault(transaction[1], set())
    new = {(oid, mode) for oid, mode in note["locks"] or ()} - held
    held |= new
    tables = {(relations[oid].name, mode) for oid, mode in new if oid in relations and relations[oid].kind in "rpm"}
    hindering = sorted((table, mode) for table, mode in tables if mode == NOBODY_READS or mode in NOBODY_WRITES)
    session.last, session.noted, session.dropped = note["left"], True, []
    seconds = round(max(0.0, note["at"] - began), 3)
    gained, lost = (tuple(sorted(note[name] or ())) for name in ("gained", "lost"))
    return Statement(note["tag"], objects, seconds, tuple(hindering), transaction, gained, lost)


def _where(query: str, position: str, migrations: Sequence[Migration], tag: str, last: Statement | None) -> str:
    """Return the file and line of a statement, as far as its text is in the migrations."""
    text = query.strip()
    for migration in migrations:
        start = migration.text.find(text) if text else -1
        if start >= 0:
            offset = len(query) - len(query.lstrip())
            exact = position.isdigit() and int(position) > 0
            if not exact and text == migration.text.strip() and last is not None:
                return f"in {migration.name}/migration.sql, behind {last.describe()}"
            line = migration.text.count("\n", 0, start + (int(position) - 1 - offset if exact else 0)) + 1
            return f"in {migration.name}/migration.sql, line {line}"
    return f"a statement {tag}" if tag else "a statement"


def without_values(sqlstate: str, message: str, context: str, known: str) -> str:
    """Return the first line of a message of the server with nothing quoted but what is in ``known``, such as a column's name.

    What a function or block raises itself is withheld: it may name whatever it read.
    """
    if " at RAISE" in context or sqlstate == "P0001":
        return "a message that the migration raises itself; it may hold rows and is withheld"
    if sqlstate.startswith("22"):  # "data exception": the value is in the message, and may hold quotes itself
        message = re.sub(r'".*"', lambda matched: matched[0] if _is_known(matched[0], known) else '"…"', message, flags=re.DOTALL)
        message = re.sub(r"'.*'", lambda matched: matched[0] if _is_known(matched[0], known) else "'…'", message, flags=re.DOTALL)
    else:
        unknown = next((piece for piece in _PIECE.finditer(message) if not _is_known(piece[0], known)), None)
        message = f'{message[: unknown.start()]}"…"' if unknown else message  # to its end: a value may hold quotes itself
    return message.partition("\n")[0][:300]


def _is_known(quoted: str, known: str) -> bool:
    return bool(quoted[1:-1]) and re.search(rf"(?<!\w){re.escape(quoted[1:-1])}(?!\w)", known) is not None
